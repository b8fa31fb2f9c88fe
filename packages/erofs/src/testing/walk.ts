/*
 * Run as a program in a mount namespace: prints what the kernel shows under the directory named by the first argument,
 * one JSON line per path, the directory itself included. Names are bytes (latin1) throughout.
 */
import { createHash } from "node:crypto";
import { createReadStream, lstatSync, readdirSync, readFileSync, readlinkSync } from "node:fs";

export interface Walked {
  readonly path: string;
  readonly inode: string;
  /** The whole st_mode. */
  readonly mode: number;
  readonly uid: number;
  readonly gid: number;
  readonly linkCount: number;
  readonly sizeBytes: number;
  readonly mtimeNs: string;
  readonly device: string;
  readonly target: string;
  readonly digest: string;
}

/** Contents above this are not read: a test that has such a file reads the parts that it means. */
const maxReadBytes = 2 ** 30;
const maxBufferedBytes = 2 ** 20;
const root = process.argv[2] ?? "";
/** By inode: one with many names is read once. */
const digests = new Map<bigint, string>();

async function digestOf(path: Buffer, sizeBytes: number): Promise<string> {
  const hash = createHash("sha256");
  if (sizeBytes <= maxBufferedBytes) hash.update(readFileSync(path));
  else for await (const chunk of createReadStream(path)) hash.update(chunk as Buffer);
  return hash.digest("hex");
}

async function tell(path: string): Promise<string[]> {
  const at = Buffer.from(path === "" ? root : `${root}/${path}`, "latin1");
  const stat = lstatSync(at, { bigint: true });
  const type = Number(stat.mode) & 0o170000;
  const sizeBytes = Number(stat.size);
  let digest = "";
  if (type === 0o100000 && sizeBytes <= maxReadBytes) {
    digest = digests.get(stat.ino) ?? (await digestOf(at, sizeBytes));
    digests.set(stat.ino, digest);
  }
  const walked: Walked = {
    path,
    inode: String(stat.ino),
    mode: Number(stat.mode),
    uid: Number(stat.uid),
    gid: Number(stat.gid),
    linkCount: Number(stat.nlink),
    sizeBytes,
    mtimeNs: String(stat.mtimeNs),
    device: type === 0o020000 || type === 0o060000 ? String(stat.rdev) : "",
    target: type === 0o120000 ? readlinkSync(at, { encoding: "buffer" }).toString("latin1") : "",
    digest,
  };
  process.stdout.write(`${JSON.stringify(walked)}\n`);
  if (type !== 0o040000) return [];
  return readdirSync(at, { encoding: "buffer" }).map((name) => {
    const below = name.toString("latin1");
    return path === "" ? below : `${path}/${below}`;
  });
}

const pending = [""];
for (let path = pending.pop(); path !== undefined; path = pending.pop()) pending.push(...(await tell(path)));
