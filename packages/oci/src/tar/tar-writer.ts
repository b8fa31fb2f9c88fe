import { type ByteString, toBytes } from "../byte-string.ts";
import { encodePax } from "./pax-records.ts";
import type { TarEntry, TarEntryType } from "./tar-entry.ts";
import { blockBytes, encodeHeader, fitsOctal } from "./tar-header.ts";

/** What a header says; the writer takes everything from it, so the same entries give the same bytes. */
export type TarHeader = Omit<TarEntry, "data">;

const typeflags: Readonly<Record<TarEntryType, string>> = {
  file: "0",
  hardlink: "1",
  symlink: "2",
  char: "3",
  block: "4",
  directory: "5",
  fifo: "6",
};

const isAscii = (text: ByteString): boolean => toBytes(text).every((byte) => byte < 0x80);

/** The header block of an entry, behind a PAX header where ustar has no room for a value. */
export function tarHeader(entry: TarHeader): Buffer {
  const pax = new Map<ByteString, Buffer>();
  // Non-ASCII names need PAX too: ustar does not say how to read them.
  if (entry.name.length > 100 || !isAscii(entry.name)) pax.set("path", toBytes(entry.name));
  if (entry.linkName.length > 100 || !isAscii(entry.linkName)) pax.set("linkpath", toBytes(entry.linkName));
  if (!fitsOctal(entry.uid, 8)) pax.set("uid", Buffer.from(String(entry.uid)));
  if (!fitsOctal(entry.gid, 8)) pax.set("gid", Buffer.from(String(entry.gid)));
  if (!fitsOctal(entry.sizeBytes, 12)) pax.set("size", Buffer.from(String(entry.sizeBytes)));
  const seconds = entry.mtimeNs / 1_000_000_000n;
  const fractionNs = entry.mtimeNs % 1_000_000_000n;
  if (entry.mtimeNs < 0n || fractionNs !== 0n || !fitsOctal(Number(seconds), 12)) {
    pax.set("mtime", Buffer.from(decimalSeconds(entry.mtimeNs)));
  }
  for (const name of [...entry.xattrs.keys()].sort()) {
    pax.set(`SCHILY.xattr.${name}`, entry.xattrs.get(name) ?? Buffer.alloc(0));
  }
  const header = encodeHeader({
    typeflag: typeflags[entry.type],
    name: entry.name.slice(0, 100),
    linkName: entry.linkName.slice(0, 100),
    mode: entry.mode,
    uid: entry.uid,
    gid: entry.gid,
    sizeBytes: entry.sizeBytes,
    mtimeSeconds: Number(seconds),
    deviceMajor: entry.deviceMajor,
    deviceMinor: entry.deviceMinor,
  });
  if (pax.size === 0) return header;
  const records = encodePax(pax);
  const extension = encodeHeader({
    typeflag: "x",
    name: "PaxHeaders/entry",
    linkName: "",
    mode: 0o644,
    uid: 0,
    gid: 0,
    sizeBytes: records.length,
    mtimeSeconds: 0,
    deviceMajor: 0,
    deviceMinor: 0,
  });
  return Buffer.concat([extension, records, tarPadding(records.length), header]);
}

/** Zeros that fill the last block of `sizeBytes` of content. */
export function tarPadding(sizeBytes: number): Buffer {
  return Buffer.alloc((blockBytes - (sizeBytes % blockBytes)) % blockBytes);
}

/** The mark that ends an archive. */
export function tarEnd(): Buffer {
  return Buffer.alloc(2 * blockBytes);
}

function decimalSeconds(ns: bigint): string {
  const absolute = ns < 0n ? -ns : ns;
  const fraction = (absolute % 1_000_000_000n).toString().padStart(9, "0").replace(/0+$/, "");
  return `${ns < 0n ? "-" : ""}${absolute / 1_000_000_000n}${fraction === "" ? "" : `.${fraction}`}`;
}
