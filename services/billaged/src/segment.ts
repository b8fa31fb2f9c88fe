import { crc32 } from "node:zlib";

// A segment file: records of length (u32, little endian), crc32 of the payload (u32, little endian), payload. The first record
// is the header.
const prefixBytes = 8;
const maxPayloadBytes = 16 * 1024 * 1024;

export interface SegmentHeader {
  readonly format: "unkey-wal-1";
  readonly index: number;
  /** The segment before, and how much of it counts: what a failed write left behind that is not part of the log. */
  readonly previous: { readonly index: number; readonly length: number } | null;
}

export function encodeRecord(payload: Uint8Array): Uint8Array {
  if (payload.length === 0 || payload.length > maxPayloadBytes) {
    throw new RangeError(`a record of ${payload.length} bytes`);
  }
  const record = Buffer.allocUnsafe(prefixBytes + payload.length);
  record.writeUInt32LE(payload.length, 0);
  record.writeUInt32LE(crc32(payload), 4);
  record.set(payload, prefixBytes);
  return record;
}

/** Whole records from `offset` on, each with the offset after it; ends at the first that is torn or damaged. */
export function* readRecords(
  bytes: Uint8Array,
  offset: number,
): Generator<{ readonly payload: Uint8Array; readonly end: number }> {
  const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength);
  let at = offset;
  while (at + prefixBytes <= bytes.length) {
    const length = view.getUint32(at, true);
    const end = at + prefixBytes + length;
    // Zeros, which a crash may leave behind, would otherwise pass for an empty record with a good checksum.
    if (length === 0 || length > maxPayloadBytes || end > bytes.length) return;
    const payload = bytes.subarray(at + prefixBytes, end);
    if (crc32(payload) !== view.getUint32(at + 4, true)) return;
    yield { payload, end };
    at = end;
  }
}

export function segmentName(index: number): string {
  return `${String(index).padStart(10, "0")}.wal`;
}

/** Undefined for a file that is no segment. */
export function segmentIndex(name: string): number | undefined {
  const match = /^(\d{10})\.wal$/.exec(name);
  return match === null ? undefined : Number(match[1]);
}

/** The header of a segment and where its first record begins; undefined when the file was torn before it was whole. */
export function readHeader(bytes: Uint8Array): { readonly header: SegmentHeader; readonly end: number } | undefined {
  for (const { payload, end } of readRecords(bytes, 0)) {
    const header = JSON.parse(Buffer.from(payload).toString("utf8")) as SegmentHeader;
    if (header.format !== "unkey-wal-1") throw new Error("a segment of an unknown format");
    return { header, end };
  }
  return undefined;
}
