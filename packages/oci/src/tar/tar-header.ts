import { type ByteString, toBytes } from "../byte-string.ts";
import { InvalidInput } from "../invalid-input.ts";

/*
 * The 512-byte header block of ustar, GNU and old tar, and the records of a PAX extended header.
 * Formats: POSIX.1-2017 pax "ustar Interchange Format" and "pax Extended Header", GNU tar manual "Basic Tar Format".
 */

export const blockBytes = 512;

export interface RawHeader {
  readonly typeflag: string;
  readonly name: ByteString;
  readonly linkName: ByteString;
  readonly mode: number;
  readonly uid: number;
  readonly gid: number;
  readonly sizeBytes: number;
  readonly mtimeSeconds: number;
  readonly deviceMajor: number;
  readonly deviceMinor: number;
}

/** True for the all-zero block that ends an archive. */
export function isEndBlock(block: Buffer): boolean {
  return block.every((byte) => byte === 0);
}

/** Reads a header block; throws InvalidInput when its checksum or a number is wrong. */
export function decodeHeader(block: Buffer): RawHeader {
  let unsigned = 8 * 0x20; // the checksum field itself counts as spaces
  let signed = unsigned;
  for (let at = 0; at < blockBytes; at++) {
    if (at >= 148 && at < 156) continue;
    unsigned += block.readUInt8(at);
    signed += block.readInt8(at); // some old writers summed signed characters
  }
  const checksum = decodeNumber(block, 148, 8, "checksum");
  if (checksum !== unsigned && checksum !== signed) throw new InvalidInput("a header's checksum is wrong");

  const ustar = block.toString("latin1", 257, 263) === "ustar\0";
  const prefix = ustar ? decodeString(block, 345, 155) : "";
  const name = decodeString(block, 0, 100);
  const known = ustar || block.toString("latin1", 257, 265) === "ustar  \0";
  return {
    typeflag: String.fromCharCode(block.readUInt8(156)),
    name: prefix === "" ? name : `${prefix}/${name}`,
    linkName: decodeString(block, 157, 100),
    mode: decodeNumber(block, 100, 8, "mode"),
    uid: decodeNumber(block, 108, 8, "uid"),
    gid: decodeNumber(block, 116, 8, "gid"),
    sizeBytes: decodeNumber(block, 124, 12, "size"),
    mtimeSeconds: decodeNumber(block, 136, 12, "mtime"),
    deviceMajor: known ? decodeNumber(block, 329, 8, "device major") : 0,
    deviceMinor: known ? decodeNumber(block, 337, 8, "device minor") : 0,
  };
}

/** Writes a ustar header block. Numbers that do not fit their octal field are written as 0: a PAX record carries them. */
export function encodeHeader(header: RawHeader): Buffer {
  const block = Buffer.alloc(blockBytes);
  toBytes(header.name).copy(block, 0, 0, 100);
  encodeOctal(block, 100, 8, header.mode);
  encodeOctal(block, 108, 8, header.uid);
  encodeOctal(block, 116, 8, header.gid);
  encodeOctal(block, 124, 12, header.sizeBytes);
  encodeOctal(block, 136, 12, header.mtimeSeconds);
  block.write(header.typeflag, 156, "latin1");
  toBytes(header.linkName).copy(block, 157, 0, 100);
  block.write("ustar\x0000", 257, "latin1");
  encodeOctal(block, 329, 8, header.deviceMajor);
  encodeOctal(block, 337, 8, header.deviceMinor);
  block.fill(0x20, 148, 156);
  const sum = block.reduce((total, byte) => total + byte, 0);
  block.write(`${sum.toString(8).padStart(6, "0")}\0 `, 148, "latin1");
  return block;
}

/** True when `value` fits an octal field of `width` bytes. */
export function fitsOctal(value: number, width: number): boolean {
  return Number.isInteger(value) && value >= 0 && value < 8 ** (width - 1);
}

/** Reads PAX records `<length> <key>=<value>\n`; keys and values stay bytes. Throws InvalidInput on any other shape. */
export function decodePax(body: Buffer): Map<ByteString, Buffer> {
  const records = new Map<ByteString, Buffer>();
  for (let at = 0; at < body.length; ) {
    const space = body.indexOf(0x20, at);
    const digits = space < 0 ? "" : body.toString("latin1", at, space);
    const end = at + Number(digits);
    if (!/^[1-9]\d{0,8}$/.test(digits) || end > body.length || end <= space + 1 || body[end - 1] !== 0x0a) {
      throw new InvalidInput("an extended header record has a wrong length");
    }
    const equals = body.indexOf(0x3d, space);
    if (equals < 0 || equals >= end - 1 || equals === space + 1) {
      throw new InvalidInput("an extended header record has no key");
    }
    records.set(body.toString("latin1", space + 1, equals), body.subarray(equals + 1, end - 1));
    at = end;
  }
  return records;
}

export function encodePax(records: ReadonlyMap<ByteString, Buffer>): Buffer {
  const parts: Buffer[] = [];
  for (const [key, value] of records) {
    const rest = 1 + key.length + 1 + value.length + 1; // space, "=", newline
    let length = rest + String(rest).length;
    if (String(length).length !== String(rest).length) length = rest + String(length).length;
    parts.push(Buffer.from(`${length} ${key}=`, "latin1"), value, Buffer.from("\n"));
  }
  return Buffer.concat(parts);
}

function decodeString(block: Buffer, offset: number, length: number): ByteString {
  const end = block.indexOf(0, offset);
  return block.toString("latin1", offset, end < 0 || end > offset + length ? offset + length : end);
}

function decodeNumber(block: Buffer, offset: number, length: number, field: string): number {
  const first = block.readUInt8(offset);
  if ((first & 0x80) !== 0) {
    // GNU base-256: big endian two's complement; the top bit of the first byte only marks the form.
    const bytes = block.subarray(offset, offset + length);
    const negative = first === 0xff;
    if (first !== 0x80 && !negative) throw new InvalidInput(`a header's ${field} is out of range`);
    let value = 0;
    for (let at = 1; at < length; at++)
      value = value * 256 + (negative ? 0xff - bytes.readUInt8(at) : bytes.readUInt8(at));
    if (!Number.isSafeInteger(value)) throw new InvalidInput(`a header's ${field} is out of range`);
    return negative ? -value - 1 : value;
  }
  const text = block.toString("latin1", offset, offset + length);
  const match = /^[ \0]*([0-7]*)[ \0]*$/.exec(text.includes("\0") ? cutAtNul(text) : text);
  if (match === null) throw new InvalidInput(`a header's ${field} is not a number`);
  return match[1] === "" ? 0 : Number.parseInt(match[1] ?? "", 8);
}

/** What stands before the first NUL that follows a digit: some writers leave bytes of an earlier value behind it. */
function cutAtNul(text: string): string {
  const start = text.search(/[^ \0]/);
  const end = start < 0 ? -1 : text.indexOf("\0", start);
  return end < 0 ? text : text.slice(0, end);
}

function encodeOctal(block: Buffer, offset: number, width: number, value: number): void {
  const number = fitsOctal(value, width) ? value : 0;
  block.write(`${number.toString(8).padStart(width - 1, "0")}\0`, offset, "latin1");
}
