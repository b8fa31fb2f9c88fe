import { createCipheriv, createDecipheriv, hkdfSync, randomBytes } from "node:crypto";
import { mib, ServiceError } from "@unkey/base";

/*
 * A blob under AES-256-GCM, in segments, so that it can be written and read as a stream and from the middle:
 *
 *   header   8 bytes magic, 32 bytes salt
 *   segment  1 MiB of text (the last one 0 bytes to 1 MiB) and its tag of 16 bytes; one after another
 *
 * The blob's key goes through HKDF-SHA256 with the salt: what comes out seals these bytes only, and so the nonce can be the
 * segment's number. A nonce's last byte tells the last segment, so that a blob cut short does not open (the STREAM
 * construction of Hoang, Reyhanitabar, Rogaway and Vizár, "Online Authenticated-Encryption and its Nonce-Reuse
 * Misuse-Resistance", 2015). The blob's name is authenticated with each segment: no blob passes for another.
 */

const magic = Buffer.from("UNKEYSB1", "latin1");
const saltBytes = 32;
const headerBytes = magic.length + saltBytes;
const segmentBytes = mib;
const tagBytes = 16;
const sealedSegmentBytes = segmentBytes + tagBytes;

export interface SealedBlob {
  /** What the blob is called; the same when it is opened. */
  readonly name: string;
  /** 32 bytes. */
  readonly key: Uint8Array;
}

/** Length of a sealed blob of so many bytes. */
export function sealedSizeOf(sizeBytes: number): number {
  return headerBytes + sizeBytes + tagBytes * segmentsOf(sizeBytes);
}

/** Length of the bytes that were sealed to so many. */
export function sizeOfSealed(sealedBytes: number): number {
  return (
    sealedBytes - headerBytes - tagBytes * Math.max(1, Math.ceil((sealedBytes - headerBytes) / sealedSegmentBytes))
  );
}

function segmentsOf(sizeBytes: number): number {
  return Math.max(1, Math.ceil(sizeBytes / segmentBytes));
}

/** Seals `chunks`. The same bytes give others each time. */
export async function* seal(chunks: AsyncIterable<Uint8Array>, blob: SealedBlob): AsyncGenerator<Buffer> {
  const salt = randomBytes(saltBytes);
  const key = keyOf(blob, salt);
  yield Buffer.concat([magic, salt]);
  let segment = 0;
  // One segment is held back until more follows: the last one is sealed as such.
  let held: Buffer | undefined;
  for await (const text of inSegments(chunks, segmentBytes)) {
    if (held !== undefined) yield sealSegment(key, blob.name, segment++, false, held);
    held = text;
  }
  yield sealSegment(key, blob.name, segment, true, held ?? Buffer.alloc(0));
}

/** Where to begin reading a sealed blob for its text from `offset`. */
export function sealedOffsetOf(offset: number): number {
  return headerBytes + Math.floor(offset / segmentBytes) * sealedSegmentBytes;
}

/**
 * The text from `offset`, of a blob whose text is `sizeBytes` long. `read` yields the sealed bytes from an offset. Throws
 * ASSET_CORRUPT when the bytes are not what was sealed with that key under that name.
 */
export async function* unseal(
  read: (sealedOffset: number) => Promise<AsyncIterable<Uint8Array>>,
  blob: SealedBlob,
  { offset, sizeBytes }: { readonly offset: number; readonly sizeBytes: number },
): AsyncGenerator<Buffer> {
  const fromStart = sealedOffsetOf(offset) === headerBytes;
  const header = fromStart ? undefined : await firstBytes(await read(0), headerBytes);
  let key = header === undefined ? undefined : keyOf(blob, saltOf(header));
  let segment = Math.floor(offset / segmentBytes);
  const last = segmentsOf(sizeBytes) - 1;
  let skip = offset % segmentBytes;
  const sealed = await read(fromStart ? 0 : sealedOffsetOf(offset));
  const pieces = fromStart ? afterHeader(sealed, (bytes) => (key = keyOf(blob, saltOf(bytes)))) : sealed;
  for await (const piece of inSegments(pieces, sealedSegmentBytes)) {
    if (key === undefined || segment > last) throw notSealed();
    const text = openSegment(key, blob.name, segment, segment === last, piece);
    segment++;
    if (skip < text.length) yield text.subarray(skip);
    skip = 0;
  }
  if (segment !== last + 1) throw notSealed();
}

function keyOf({ key }: SealedBlob, salt: Uint8Array): Buffer {
  return Buffer.from(hkdfSync("sha256", key, salt, "unkey sealed blob 1", 32));
}

function saltOf(header: Buffer): Buffer {
  if (header.length !== headerBytes || !header.subarray(0, magic.length).equals(magic)) throw notSealed();
  return header.subarray(magic.length);
}

function sealSegment(key: Buffer, name: string, segment: number, last: boolean, text: Buffer): Buffer {
  const cipher = createCipheriv("aes-256-gcm", key, nonceOf(segment, last)).setAAD(Buffer.from(name));
  return Buffer.concat([cipher.update(text), cipher.final(), cipher.getAuthTag()]);
}

function openSegment(key: Buffer, name: string, segment: number, last: boolean, sealed: Buffer): Buffer {
  if (sealed.length < tagBytes) throw notSealed();
  const cipher = createDecipheriv("aes-256-gcm", key, nonceOf(segment, last), { authTagLength: tagBytes });
  cipher.setAAD(Buffer.from(name)).setAuthTag(sealed.subarray(-tagBytes));
  try {
    return Buffer.concat([cipher.update(sealed.subarray(0, -tagBytes)), cipher.final()]);
  } catch (cause) {
    throw notSealed(cause);
  }
}

function nonceOf(segment: number, last: boolean): Buffer {
  const nonce = Buffer.alloc(12);
  nonce.writeUIntBE(segment, 5, 6);
  nonce.writeUInt8(last ? 1 : 0, 11);
  return nonce;
}

/** The same bytes in pieces of exactly that length; the last one may be shorter. */
async function* inSegments(chunks: AsyncIterable<Uint8Array>, pieceBytes: number): AsyncGenerator<Buffer> {
  let piece = Buffer.allocUnsafe(pieceBytes);
  let filled = 0;
  for await (const chunk of chunks) {
    for (let at = 0; at < chunk.length; ) {
      const take = Math.min(chunk.length - at, pieceBytes - filled);
      piece.set(chunk.subarray(at, at + take), filled);
      filled += take;
      at += take;
      if (filled < pieceBytes) continue;
      yield piece;
      piece = Buffer.allocUnsafe(pieceBytes);
      filled = 0;
    }
  }
  if (filled > 0) yield piece.subarray(0, filled);
}

/** What follows the header; the header itself goes to `onHeader`. */
async function* afterHeader(
  chunks: AsyncIterable<Uint8Array>,
  onHeader: (header: Buffer) => void,
): AsyncGenerator<Uint8Array> {
  let header: Buffer | undefined = Buffer.alloc(0);
  for await (const chunk of chunks) {
    if (header === undefined) {
      yield chunk;
      continue;
    }
    header = Buffer.concat([header, chunk]);
    if (header.length < headerBytes) continue;
    onHeader(header.subarray(0, headerBytes));
    yield header.subarray(headerBytes);
    header = undefined;
  }
  if (header !== undefined) throw notSealed();
}

async function firstBytes(chunks: AsyncIterable<Uint8Array>, count: number): Promise<Buffer> {
  let bytes = Buffer.alloc(0);
  for await (const chunk of chunks) {
    bytes = Buffer.concat([bytes, chunk]);
    if (bytes.length >= count) break;
  }
  return bytes.subarray(0, count);
}

function notSealed(cause?: unknown): ServiceError {
  return new ServiceError("ASSET_CORRUPT", "the stored blob is not what was sealed", { cause });
}
