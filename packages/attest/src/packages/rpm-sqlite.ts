import { DatabaseSync } from "node:sqlite";
import { UnreadableFile } from "./package-list.ts";

/** What rpm itself makes (lib/backend/sqlite.cc); another definition could hide work behind its columns. */
const packagesTable =
  /^CREATE TABLE ['"]?Packages['"]? ?\( ?hnum INTEGER PRIMARY KEY( AUTOINCREMENT)?, ?blob BLOB NOT NULL ?\)$/;
/** A damaged tree of pages could name one page many times. */
const readsPerByte = 4;
const formatVersions = 18;

/** The headers in an `rpmdb.sqlite`. */
export function* readRpmSqlite(bytes: Buffer): Generator<Buffer> {
  if (bytes.length < 100 || bytes.subarray(0, 16).toString("latin1") !== "SQLite format 3\0") {
    throw new UnreadableFile("it is not a SQLite database");
  }
  using database = new DatabaseSync(":memory:");
  // In memory there is no write-ahead log, and SQLite refuses a database that says it has one (sqlite3_deserialize).
  const before = bytes.readUInt16BE(formatVersions);
  bytes.writeUInt16BE(0x0101, formatVersions);
  try {
    database.deserialize(bytes);
  } catch {
    throw new UnreadableFile("SQLite cannot read it");
  } finally {
    bytes.writeUInt16BE(before, formatVersions);
  }
  database.enableDefensive(true);
  let left = bytes.length * readsPerByte;
  try {
    const made = database.prepare("SELECT sql FROM sqlite_schema WHERE type = 'table' AND name = 'Packages'").get();
    const sql = typeof made?.["sql"] === "string" ? made["sql"].replaceAll(/\s+/g, " ") : "";
    if (!packagesTable.test(sql)) throw new UnreadableFile("its table of packages is not rpm's");
    for (const { blob } of database.prepare("SELECT blob FROM Packages ORDER BY hnum").iterate()) {
      if (!(blob instanceof Uint8Array)) throw new UnreadableFile("a header in it is no blob");
      left -= blob.length + 1;
      if (left < 0) throw new UnreadableFile("its pages are tangled");
      yield Buffer.from(blob.buffer, blob.byteOffset, blob.length);
    }
  } catch (error) {
    if (error instanceof UnreadableFile) throw error;
    throw new UnreadableFile("SQLite cannot read it");
  }
}
