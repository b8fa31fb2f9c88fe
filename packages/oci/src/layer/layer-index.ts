import type { FileHandle } from "node:fs/promises";
import { crc32 } from "node:zlib";
import { kib, mib } from "@unkey/base";
import type { ByteString } from "../byte-string.ts";
import type { Digest } from "../digest.ts";
import type { DataRange } from "../tar/sparse-map.ts";
import { noXattrs, type TarEntry, type TarEntryType } from "../tar/tar-entry.ts";
import { type StoredData, StoredDataCounter } from "./stored-data.ts";

/*
 * A layer's entries in a file, in the archive's order. Numbers are little endian.
 *   magic       8 bytes, the version in the last of them
 *   records     length u32, then that many bytes: kind u8, then
 *     head  (1) diff id
 *     entry (2) type u8, mode u16, uid u32, gid u32, mtime seconds u32 and nanoseconds u32,
 *               a file: size f64; a device: major u32, minor u32; else 8 zero bytes,
 *               lengths of name and link name, counts of attributes and ranges (u32 each; ranges 0xffffffff: no holes),
 *               name, link name, each attribute (name length u32, value length u32, both), each range (offset f64, length f64)
 *     tail  (3) entries u32, bytes of content f64 and of tails f64, names of dropped attributes (length u32 each), CRC-32 of all
 *               before the CRC
 * Where a file's data is follows from the files before it (stored-data.ts).
 * It is written by this process or one like it: the checks are for a file that was cut short or changed on disk.
 */

const magic = Buffer.from("UKLAYER\x02", "latin1");
const kinds = { head: 1, entry: 2, tail: 3 } as const;
const types: readonly TarEntryType[] = ["file", "hardlink", "symlink", "char", "block", "directory", "fifo"];
const typeCodes = new Map(types.map((type, code) => [type, code]));
const entryHeadBytes = 1 + 1 + 2 + 4 * 4 + 8 + 4 * 4;
const wholeFile = 0xffffffff;
const bufferBytes = mib;
/** Longer than any entry that the parser lets through: two names of 1 MiB, 65,536 ranges, attributes. */
const maxRecordBytes = 8 * mib;

export interface IndexTail {
  readonly entries: number;
  /** Lengths of the two files with the data. */
  readonly contentBytes: number;
  readonly tailsBytes: number;
  /** Names of attributes that were left out. */
  readonly droppedXattrs: readonly ByteString[];
}

/** Encodes an index piece by piece. The caller writes what `take` returns, in order. */
export class IndexEncoder {
  #buffer = Buffer.allocUnsafe(bufferBytes);
  #used = 0;
  #crc = 0;
  #full: Buffer[] = [];

  constructor(diffId: Digest) {
    this.#reserve(magic.length + 5 + diffId.length);
    this.#used += magic.copy(this.#buffer, this.#used);
    this.#startRecord(kinds.head, diffId.length);
    this.#text(diffId);
  }

  /** Times are kept to the nanosecond from 1970 to 2106 and are the caller's to clamp. */
  addEntry(entry: TarEntry): void {
    const { name, linkName, xattrs, data } = entry;
    let bytes = entryHeadBytes - 1 + name.length + linkName.length + 16 * (data?.length ?? 0);
    for (const [key, value] of xattrs) bytes += 8 + key.length + value.length;
    this.#reserve(5 + bytes);
    this.#startRecord(kinds.entry, bytes);
    const seconds = entry.mtimeNs / 1_000_000_000n;
    this.#u8(typeCodes.get(entry.type) ?? 0);
    this.#used = this.#buffer.writeUInt16LE(entry.mode, this.#used);
    this.#u32(entry.uid);
    this.#u32(entry.gid);
    this.#u32(Number(seconds));
    this.#u32(Number(entry.mtimeNs - seconds * 1_000_000_000n));
    if (entry.type === "file") {
      this.#f64(entry.sizeBytes);
    } else {
      this.#u32(entry.deviceMajor >>> 0);
      this.#u32(entry.deviceMinor >>> 0);
    }
    this.#u32(name.length);
    this.#u32(linkName.length);
    this.#u32(xattrs.size);
    this.#u32(data?.length ?? wholeFile);
    this.#text(name);
    this.#text(linkName);
    for (const [key, value] of xattrs) {
      this.#u32(key.length);
      this.#u32(value.length);
      this.#text(key);
      this.#used += value.copy(this.#buffer, this.#used);
    }
    for (const { offset, length } of data ?? []) {
      this.#f64(offset);
      this.#f64(length);
    }
  }

  addTail({ entries, contentBytes, tailsBytes, droppedXattrs }: IndexTail): void {
    const bytes = 4 + 8 + 8 + 4 + droppedXattrs.reduce((total, name) => total + 4 + name.length, 0) + 4;
    this.#reserve(5 + bytes);
    this.#startRecord(kinds.tail, bytes);
    this.#u32(entries);
    this.#f64(contentBytes);
    this.#f64(tailsBytes);
    this.#u32(droppedXattrs.length);
    for (const name of droppedXattrs) {
      this.#u32(name.length);
      this.#text(name);
    }
    this.#u32(crc32(this.#buffer.subarray(0, this.#used), this.#crc));
    this.#flush();
  }

  /** What has been encoded and is at least a buffer full; everything after `addTail`. */
  take(): Buffer[] {
    const full = this.#full;
    this.#full = [];
    return full;
  }

  #reserve(bytes: number): void {
    if (this.#buffer.length - this.#used >= bytes) return;
    this.#flush();
    this.#buffer = Buffer.allocUnsafe(Math.max(bufferBytes, bytes));
  }

  #flush(): void {
    const bytes = this.#buffer.subarray(0, this.#used);
    this.#crc = crc32(bytes, this.#crc);
    this.#full.push(bytes);
    this.#used = 0;
  }

  #startRecord(kind: number, bodyBytes: number): void {
    this.#u32(1 + bodyBytes);
    this.#u8(kind);
  }

  #u8(value: number): void {
    this.#used = this.#buffer.writeUInt8(value, this.#used);
  }

  #u32(value: number): void {
    this.#used = this.#buffer.writeUInt32LE(value, this.#used);
  }

  #f64(value: number): void {
    this.#used = this.#buffer.writeDoubleLE(value, this.#used);
  }

  #text(text: ByteString): void {
    this.#used += this.#buffer.write(text, this.#used, "latin1");
  }
}

/** Bytes that are no index, or not the one that was written. */
export class DamagedIndex extends Error {
  override readonly name = "DamagedIndex";
}

/**
 * Reads an index from an open file and hands over its entries with the places of their data. Throws DamagedIndex, at the latest
 * behind the last entry.
 */
export async function readIndex(
  file: FileHandle,
  diffId: Digest,
  onEntry: (entry: TarEntry, stored: StoredData) => void,
): Promise<IndexTail> {
  const decoder = new IndexDecoder(diffId, onEntry);
  let buffer = Buffer.allocUnsafe(256 * kib);
  let held = 0;
  for (let position = 0; ; ) {
    const { bytesRead } = await file.read(buffer, held, buffer.length - held, position);
    if (bytesRead === 0) break;
    position += bytesRead;
    held += bytesRead;
    const taken = decoder.decode(buffer.subarray(0, held));
    buffer.copyWithin(0, taken, held);
    held -= taken;
    if (decoder.missing > buffer.length) buffer = Buffer.concat([buffer.subarray(0, held)], decoder.missing);
  }
  if (held > 0) throw new DamagedIndex("the index ends in the middle of a record");
  return decoder.finish();
}

class IndexDecoder {
  readonly #diffId: Digest;
  readonly #onEntry: (entry: TarEntry, stored: StoredData) => void;
  #crc = 0;
  #started = false;
  #matches = false;
  #tail: IndexTail | undefined;
  #entries = 0;
  readonly #stored = new StoredDataCounter();
  /** Of the last entry: neighbours mostly share it. */
  #mtimeNs = 0n;
  #mtimeSeconds = 0;
  #mtimeRest = 0;
  /** Bytes that the next record needs, when that is known. */
  missing = 0;

  constructor(diffId: Digest, onEntry: (entry: TarEntry, stored: StoredData) => void) {
    this.#diffId = diffId;
    this.#onEntry = onEntry;
  }

  /** Decodes the whole records at the start of `bytes`; returns how long they are. */
  decode(bytes: Buffer): number {
    let at = 0;
    if (!this.#started) {
      if (bytes.length < magic.length) return 0;
      if (!bytes.subarray(0, magic.length).equals(magic)) throw new DamagedIndex("the index has another format");
      at = magic.length;
      this.#started = true;
    }
    let tailAt = -1;
    while (bytes.length - at >= 5) {
      const length = bytes.readUInt32LE(at);
      if (length === 0 || length > maxRecordBytes) throw new DamagedIndex("a record of the index has a wrong length");
      this.missing = 4 + length;
      const end = at + 4 + length;
      if (end > bytes.length) break;
      if (this.#tail !== undefined) throw new DamagedIndex("the index goes on behind its end");
      const kind = bytes[at + 4];
      if (kind === kinds.entry && this.#matches) this.#entry(bytes, at + 5, end);
      else if (kind === kinds.head) this.#matches = bytes.toString("latin1", at + 5, end) === this.#diffId;
      else if (kind === kinds.tail) {
        this.#readTail(bytes, at + 5, end);
        tailAt = end - 4;
      } else throw new DamagedIndex("the index has a record of an unknown kind");
      if (!this.#matches) throw new DamagedIndex("the index belongs to another layer");
      at = end;
    }
    this.#crc = crc32(bytes.subarray(0, tailAt >= 0 ? tailAt : at), this.#crc);
    if (tailAt >= 0 && this.#crc !== bytes.readUInt32LE(tailAt))
      throw new DamagedIndex("the index has a wrong checksum");
    return at;
  }

  finish(): IndexTail {
    if (this.#tail === undefined) throw new DamagedIndex("the index has no end");
    const { entries, contentBytes, tailsBytes } = this.#tail;
    const counted = this.#stored;
    if (entries !== this.#entries || contentBytes !== counted.contentBytes || tailsBytes !== counted.tailsBytes) {
      throw new DamagedIndex("the index contradicts its end");
    }
    return this.#tail;
  }

  #entry(bytes: Buffer, start: number, end: number): void {
    if (end - start < entryHeadBytes - 1) throw new DamagedIndex("an entry of the index is too short");
    const type = types[bytes[start] ?? 0];
    const nameBytes = bytes.readUInt32LE(start + 27);
    const linkBytes = bytes.readUInt32LE(start + 31);
    const xattrCount = bytes.readUInt32LE(start + 35);
    const rangeCount = bytes.readUInt32LE(start + 39);
    let at = start + 43;
    const text = (length: number): string => {
      if (length > end - at) throw new DamagedIndex("an entry of the index is too short");
      at += length;
      return bytes.toString("latin1", at - length, at);
    };
    if (type === undefined) throw new DamagedIndex("an entry of the index has an unknown type");
    const name = text(nameBytes);
    const linkName = linkBytes === 0 ? "" : text(linkBytes);
    let xattrs = noXattrs;
    if (xattrCount > 0) {
      const found = new Map<ByteString, Buffer>();
      for (let left = xattrCount; left > 0; left--) {
        if (end - at < 8) throw new DamagedIndex("an entry of the index is too short");
        const keyBytes = bytes.readUInt32LE(at);
        const valueBytes = bytes.readUInt32LE(at + 4);
        at += 8;
        const key = text(keyBytes);
        if (valueBytes > end - at) throw new DamagedIndex("an entry of the index is too short");
        found.set(key, Buffer.from(bytes.subarray(at, at + valueBytes)));
        at += valueBytes;
      }
      xattrs = found;
    }
    const isFile = type === "file";
    const sizeBytes = isFile ? bytes.readDoubleLE(start + 19) : 0;
    let data: DataRange[] | undefined;
    if (rangeCount !== wholeFile) {
      if (end - at !== 16 * rangeCount) throw new DamagedIndex("an entry of the index is too short");
      data = [];
      for (; at < end; at += 16) data.push({ offset: bytes.readDoubleLE(at), length: bytes.readDoubleLE(at + 8) });
    }
    const plain = {
      type,
      name,
      linkName,
      mode: bytes.readUInt16LE(start + 1),
      uid: bytes.readUInt32LE(start + 3),
      gid: bytes.readUInt32LE(start + 7),
      mtimeNs: this.#mtime(bytes.readUInt32LE(start + 11), bytes.readUInt32LE(start + 15)),
      sizeBytes,
      deviceMajor: isFile ? 0 : bytes.readUInt32LE(start + 19),
      deviceMinor: isFile ? 0 : bytes.readUInt32LE(start + 23),
      xattrs,
    };
    const entry: TarEntry = data === undefined ? plain : { ...plain, data };
    this.#entries++;
    this.#onEntry(entry, this.#stored.place(entry));
  }

  #mtime(seconds: number, rest: number): bigint {
    if (seconds !== this.#mtimeSeconds || rest !== this.#mtimeRest) {
      this.#mtimeNs = BigInt(seconds) * 1_000_000_000n + BigInt(rest);
      this.#mtimeSeconds = seconds;
      this.#mtimeRest = rest;
    }
    return this.#mtimeNs;
  }

  #readTail(bytes: Buffer, start: number, end: number): void {
    if (end - start < 28) throw new DamagedIndex("the index's end is too short");
    const droppedXattrs: ByteString[] = [];
    let at = start + 24;
    for (let left = bytes.readUInt32LE(start + 20); left > 0; left--) {
      const length = end - at < 8 ? Number.POSITIVE_INFINITY : bytes.readUInt32LE(at);
      if (length > end - at - 8) throw new DamagedIndex("the index's end is too short");
      droppedXattrs.push(bytes.toString("latin1", at + 4, at + 4 + length));
      at += 4 + length;
    }
    this.#tail = {
      entries: bytes.readUInt32LE(start),
      contentBytes: bytes.readDoubleLE(start + 4),
      tailsBytes: bytes.readDoubleLE(start + 12),
      droppedXattrs,
    };
  }
}
