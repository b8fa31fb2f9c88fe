import { type DeclaredPackage, UnreadableFile } from "./package-list.ts";

const tags = { name: 1000, version: 1001, release: 1002, epoch: 1003, license: 1014, arch: 1022 } as const;
const int32Type = 4;
/** STRING, STRING_ARRAY and I18NSTRING: the first string of each is the one that counts. */
const stringTypes = new Set([6, 8, 9]);
const entryBytes = 16;
const maxStringBytes = 4096;

/**
 * A package as rpm's databases keep it: count of entries, length of data, entries of tag, type, offset and count, data; all
 * big-endian (https://rpm-software-management.github.io/rpm/manual/format_header.html, without the magic).
 */
export function readRpmHeader(blob: Buffer): DeclaredPackage {
  if (blob.length < 8) throw new UnreadableFile("a header in it is cut short");
  const entries = blob.readUInt32BE(0);
  const dataStart = 8 + entries * entryBytes;
  if (dataStart + blob.readUInt32BE(4) > blob.length) throw new UnreadableFile("a header in it is cut short");
  const data = blob.subarray(dataStart, dataStart + blob.readUInt32BE(4));
  const found = new Map<number, string>();
  const wanted = new Set<number>(Object.values(tags));
  for (let at = 8; at < dataStart; at += entryBytes) {
    const tag = blob.readUInt32BE(at);
    if (!wanted.has(tag) || found.has(tag)) continue;
    const value = valueOf(data, blob.readUInt32BE(at + 4), blob.readUInt32BE(at + 8));
    if (value !== undefined) found.set(tag, value);
  }
  const version = found.get(tags.version) ?? "";
  const release = found.get(tags.release) ?? "";
  return {
    name: found.get(tags.name) ?? "",
    version: version === "" || release === "" ? version : `${version}-${release}`,
    architecture: found.get(tags.arch) ?? "",
    license: found.get(tags.license) ?? "",
    epoch: found.get(tags.epoch) ?? "",
  };
}

function valueOf(data: Buffer, type: number, offset: number): string | undefined {
  if (offset >= data.length) return undefined;
  if (type === int32Type) return offset + 4 <= data.length ? String(data.readUInt32BE(offset)) : undefined;
  if (!stringTypes.has(type)) return undefined;
  const end = data.indexOf(0, offset);
  return data.subarray(offset, Math.min(end === -1 ? data.length : end, offset + maxStringBytes)).toString("utf8");
}

/** What rpm keeps beside packages: keys of repositories, as a package of this name and no architecture. */
export function isPublicKey(declared: DeclaredPackage): boolean {
  return declared.name === "gpg-pubkey";
}
