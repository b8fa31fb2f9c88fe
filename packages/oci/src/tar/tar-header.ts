import { type ByteString, toBytes } from "../byte-string.ts";
import { InvalidInput } from "../invalid-input.ts";

/*
 * The 512-byte header block of ustar, GNU and old tar.
 * Formats: POSIX.1-2017 pax "ustar Interchange Format", GNU tar manual "Basic Tar Format".
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

const zeros = Buffer.alloc(blockBytes);

/** True for the all-zero block that ends an archive. */
export function isEndBlock(block: Buffer): boolean {
  return block[0] === 0 && block.equals(zeros);
}

/** Reads a header block; throws InvalidInput when its checksum or a number is wrong. */
export function decodeHeader(block: Buffer): RawHeader {
  let unsigned = 0;
  for (let at = 0; at < blockBytes; at++) unsigned += block[at] ?? 0;
  for (let at = 148; at < 156; at++) unsigned += 0x20 - (block[at] ?? 0); // the checksum field itself counts as spaces
  const checksum = decodeNumber(block, 148, 8, "checksum");
  if (checksum !== unsigned && checksum !== signedChecksum(block, unsigned))
    throw new InvalidInput("a header's checksum is wrong");

  // "ustar", then a NUL; or as GNU and old tar wrote it, two spaces and a NUL.
  const isTar = block.readUInt32BE(257) === 0x75737461 && block[261] === 0x72;
  const ustar = isTar && block[262] === 0;
  const prefix = ustar ? decodeString(block, 345, 155) : "";
  const name = decodeString(block, 0, 100);
  const known = ustar || (isTar && block[262] === 0x20 && block[263] === 0x20 && block[264] === 0);
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

/** As some old writers summed it: characters are signed. */
function signedChecksum(block: Buffer, unsigned: number): number {
  let high = 0;
  for (let at = 0; at < blockBytes; at++) if (at < 148 || at >= 156) high += (block[at] ?? 0) >> 7;
  return unsigned - 256 * high;
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

function decodeString(block: Buffer, offset: number, length: number): ByteString {
  if (block[offset] === 0) return "";
  const end = block.indexOf(0, offset);
  return block.toString("latin1", offset, end < 0 || end > offset + length ? offset + length : end);
}

/** Reads a number field: octal text, or GNU's base-256. `field` names it in the InvalidInput that anything else throws. */
export function decodeNumber(block: Buffer, offset: number, length: number, field: string): number {
  const first = block[offset] ?? 0;
  if ((first & 0x80) !== 0) {
    // GNU base-256: big endian two's complement; the top bit of the first byte only marks the form.
    const negative = first === 0xff;
    if (first !== 0x80 && !negative) throw new InvalidInput(`a header's ${field} is out of range`);
    let value = 0;
    for (let at = offset + 1; at < offset + length; at++) {
      const byte = block[at] ?? 0;
      value = value * 256 + (negative ? 0xff - byte : byte);
    }
    if (!Number.isSafeInteger(value)) throw new InvalidInput(`a header's ${field} is out of range`);
    return negative ? -value - 1 : value;
  }
  let at = offset;
  const end = offset + length;
  while (at < end && (block[at] === 0x20 || block[at] === 0)) at++;
  let value = 0;
  for (; at < end; at++) {
    const digit = (block[at] ?? 0) - 0x30;
    if (digit < 0 || digit > 7) break;
    value = value * 8 + digit;
  }
  while (at < end && block[at] === 0x20) at++;
  // Behind a NUL some writers leave bytes of an earlier value.
  if (at < end && block[at] !== 0) throw new InvalidInput(`a header's ${field} is not a number`);
  return value;
}

function encodeOctal(block: Buffer, offset: number, width: number, value: number): void {
  const number = fitsOctal(value, width) ? value : 0;
  block.write(`${number.toString(8).padStart(width - 1, "0")}\0`, offset, "latin1");
}
