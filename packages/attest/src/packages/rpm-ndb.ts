import { UnreadableFile } from "./package-list.ts";

const magicOf = (text: string) => Buffer.from(text, "latin1").readUInt32LE(0);
const databaseMagic = magicOf("RpmP");
const slotMagic = magicOf("Slot");
const blobMagic = magicOf("BlbS");
const pageBytes = 4096;
const slotBytes = 16;
const blockBytes = 16;
const headerBytes = 32;
const blobHeadBytes = 16;
const blobTailBytes = 12;

/**
 * The headers in a `Packages.db` (rpm's lib/backend/ndb/rpmpkg.c): pages of slots, each naming a run of blocks that holds one
 * header between a head and a tail; all little-endian.
 */
export function* readRpmNdb(bytes: Buffer): Generator<Buffer> {
  if (bytes.length < pageBytes || bytes.readUInt32LE(0) !== databaseMagic) throw new UnreadableFile("it is not an ndb");
  if (bytes.readUInt32LE(4) !== 0) throw new UnreadableFile("it is an ndb of another version");
  const slotsEnd = bytes.readUInt32LE(12) * pageBytes;
  if (slotsEnd > bytes.length) throw new UnreadableFile("it is cut short");
  let left = bytes.length; // two slots of a whole database never share blocks
  for (let slot = headerBytes; slot < slotsEnd; slot += slotBytes) {
    if (bytes.readUInt32LE(slot) !== slotMagic) throw new UnreadableFile("a slot in it is damaged");
    const index = bytes.readUInt32LE(slot + 4);
    const start = bytes.readUInt32LE(slot + 8) * blockBytes;
    const length = bytes.readUInt32LE(slot + 12) * blockBytes;
    if (start === 0) continue;
    left -= length;
    if (start < slotsEnd || start + length > bytes.length || length < blobHeadBytes + blobTailBytes || left < 0) {
      throw new UnreadableFile("a slot in it is damaged");
    }
    const size = bytes.readUInt32LE(start + 12);
    const fits = size <= length - blobHeadBytes - blobTailBytes;
    if (bytes.readUInt32LE(start) !== blobMagic || bytes.readUInt32LE(start + 4) !== index || !fits) {
      throw new UnreadableFile("a header in it is damaged");
    }
    yield bytes.subarray(start + blobHeadBytes, start + blobHeadBytes + size);
  }
}
