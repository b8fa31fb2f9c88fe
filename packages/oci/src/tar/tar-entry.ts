import type { ByteString } from "../byte-string.ts";
import { InvalidInput } from "../invalid-input.ts";
import { integerOf, type PaxRecords, textOf } from "./pax-records.ts";
import { encodeAclText } from "./posix-acl.ts";
import type { DataRange } from "./sparse-map.ts";
import type { RawHeader } from "./tar-header.ts";

export type TarEntryType = "file" | "hardlink" | "symlink" | "char" | "block" | "directory" | "fifo";

export interface TarEntry {
  readonly type: TarEntryType;
  /** As written: may be absolute, hold `..`, or end in a slash. */
  readonly name: ByteString;
  readonly linkName: ByteString;
  /** Permission bits with setuid, setgid and sticky. */
  readonly mode: number;
  readonly uid: number;
  readonly gid: number;
  readonly mtimeNs: bigint;
  /** Bytes that a reader of the file sees; 0 for anything but a file. */
  readonly sizeBytes: number;
  /** Ranges that the archive holds bytes for, ascending and apart; the rest are holes. Absent: all of the file. */
  readonly data?: readonly DataRange[];
  readonly deviceMajor: number;
  readonly deviceMinor: number;
  readonly xattrs: ReadonlyMap<ByteString, Buffer>;
}

const xattrPrefix = "SCHILY.xattr.";
/** The highest id is what chown(2) takes for "leave it". */
const maxId = 0xfffffffe;
export const noXattrs: ReadonlyMap<ByteString, Buffer> = new Map();

const types: Readonly<Record<string, TarEntryType>> = {
  "\0": "file",
  "0": "file",
  "7": "file", // contiguous file: a file on every system that reads it today
  S: "file", // GNU sparse, old form
  "1": "hardlink",
  "2": "symlink",
  "3": "char",
  "4": "block",
  "5": "directory",
  "6": "fifo",
};

/** What long-name headers said before the entry's own header. */
export interface EntryExtensions {
  readonly pax: PaxRecords | undefined;
  readonly longName: ByteString | undefined;
  readonly longLinkName: ByteString | undefined;
}

/**
 * Joins a header with the extended headers before it. `sizeBytes` is what follows in the archive: the caller corrects it for a
 * sparse file. Throws InvalidInput.
 */
export function entryOf(header: RawHeader, { pax, longName, longLinkName }: EntryExtensions): TarEntry {
  const name = textOf(pax, "path") ?? longName ?? header.name;
  let type = types[header.typeflag];
  if (type === undefined) {
    throw new InvalidInput(`entries of type ${JSON.stringify(header.typeflag)} are not supported`);
  }
  if (type === "file" && name.endsWith("/")) type = "directory"; // how tar wrote directories before ustar
  const linkName = textOf(pax, "linkpath") ?? longLinkName ?? header.linkName;
  if (name.includes("\0") || linkName.includes("\0")) throw new InvalidInput("a name holds a NUL byte");
  const declared = integerOf(pax, "size", Number.MAX_SAFE_INTEGER) ?? header.sizeBytes;
  if (declared < 0) throw new InvalidInput("an entry has a negative size");
  return {
    type,
    name,
    linkName,
    mode: header.mode & 0o7777,
    uid: ownerId(integerOf(pax, "uid", maxId) ?? header.uid),
    gid: ownerId(integerOf(pax, "gid", maxId) ?? header.gid),
    mtimeNs: paxTime(pax, "mtime") ?? BigInt(header.mtimeSeconds) * 1_000_000_000n,
    sizeBytes: type === "file" ? declared : 0,
    deviceMajor: header.deviceMajor,
    deviceMinor: header.deviceMinor,
    xattrs: pax === undefined ? noXattrs : xattrsOf(pax),
  };
}

function xattrsOf(pax: PaxRecords): ReadonlyMap<ByteString, Buffer> {
  let xattrs: Map<ByteString, Buffer> | undefined;
  for (const [key, value] of pax.values) {
    if (!key.startsWith("SCHILY.")) continue;
    xattrs ??= new Map();
    if (key.startsWith(xattrPrefix)) xattrs.set(key.slice(xattrPrefix.length), value);
    else if (key === "SCHILY.acl.access" || key === "SCHILY.acl.default") {
      const acl = encodeAclText(value);
      // One that names users without numbers is handed on as it is, for whoever decides what is kept.
      if (acl === "unresolved") xattrs.set(key, value);
      else if (acl !== "trivial") xattrs.set(`system.posix_acl_${key.slice("SCHILY.acl.".length)}`, acl);
    }
  }
  return xattrs ?? noXattrs;
}

function ownerId(value: number): number {
  if (value < 0 || value > maxId) throw new InvalidInput(`owner ${value} is out of range`);
  return value;
}

/** Decimal seconds with an optional fraction, kept to the nanosecond. */
function paxTime(pax: PaxRecords | undefined, key: string): bigint | undefined {
  const value = textOf(pax, key);
  if (value === undefined) return undefined;
  const match = /^(-?)(\d{1,15})(?:\.(\d*))?$/.exec(value);
  if (match === null) throw new InvalidInput(`an extended header's ${key} is not a time`);
  const ns = BigInt(match[2] ?? "0") * 1_000_000_000n + BigInt((match[3] ?? "").slice(0, 9).padEnd(9, "0"));
  return match[1] === "-" ? -ns : ns;
}
