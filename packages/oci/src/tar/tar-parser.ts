import type { ByteString } from "../byte-string.ts";
import { InvalidInput } from "../invalid-input.ts";
import { decodePax, type PaxRecords, textOf } from "./pax-records.ts";
import { InContentMap, paxSparse, readSparseExtension, readSparseHeader, SparseMap } from "./sparse-map.ts";
import { entryOf, type TarEntry } from "./tar-entry.ts";
import { blockBytes, decodeHeader, isEndBlock, type RawHeader } from "./tar-header.ts";

/** Receives an archive in its own order. */
export interface TarSink {
  entry(entry: TarEntry): void;
  /** Some of the last entry's content, in order: a view of what was given to `write`. */
  content(bytes: Buffer): void;
}

const maxExtendedHeaderBytes = 1024 * 1024;
/** Headers that describe one following entry; more than these is an attempt to keep the reader busy. */
const maxHeadersPerEntry = 16;

/**
 * Parses a tar archive of untrusted bytes as they arrive: ustar, PAX, GNU long names, base-256 numbers, sparse files. Names and
 * attribute values stay bytes, which is why no general tar package is used: those decode them as UTF-8 and so destroy file
 * capabilities. It works synchronously, so that an image of small files costs no promise for each. Throws InvalidInput.
 *
 * What comes next in the archive:
 *   header         the block that starts an entry, an extended header, or the end
 *   extension      the body of an extended header, collected whole
 *   sparse-header  a further block of an old GNU sparse header
 *   sparse-map     a block of the map at the start of a PAX 1.0 sparse file's content
 *   content        the last entry's bytes; then `skip`, its padding
 *   end            whatever follows the end mark: part of the digest, of no entry
 */
export class TarParser {
  readonly #sink: TarSink;
  #expects: "header" | "extension" | "sparse-header" | "sparse-map" | "content" | "skip" | "end" = "header";
  /** Of `content` and `skip`: bytes still to come. */
  #left = 0;
  #padding = 0;
  /** Of the other modes: the block is this long; what has come of it, when it is cut by the end of a chunk. */
  #blockBytes = blockBytes;
  #partial: Buffer | undefined;
  #partialBytes = 0;

  #headers = 0;
  #extension: RawHeader | undefined;
  #pax: PaxRecords | undefined;
  #longName: ByteString | undefined;
  #longLinkName: ByteString | undefined;
  #sparse: { entry: TarEntry; sizeBytes: number; map: SparseMap } | undefined;
  #inContent: InContentMap | undefined;

  constructor(sink: TarSink) {
    this.#sink = sink;
  }

  write(chunk: Buffer): void {
    for (let at = 0; at < chunk.length; ) {
      if (this.#expects === "end") return;
      if (this.#expects === "content" || this.#expects === "skip") {
        const end = Math.min(chunk.length, at + this.#left);
        if (this.#expects === "content") this.#sink.content(chunk.subarray(at, end));
        this.#left -= end - at;
        at = end;
        if (this.#left === 0) this.#contentEnded();
      } else if (this.#partial === undefined && chunk.length - at >= this.#blockBytes) {
        const start = at;
        at += this.#blockBytes;
        this.#block(chunk.subarray(start, at));
      } else {
        this.#partial ??= Buffer.allocUnsafe(this.#blockBytes);
        const copied = chunk.copy(this.#partial, this.#partialBytes, at);
        this.#partialBytes += copied;
        at += copied;
        if (this.#partialBytes < this.#blockBytes) continue;
        const block = this.#partial;
        this.#partial = undefined;
        this.#partialBytes = 0;
        this.#block(block);
      }
    }
  }

  /** The archive ended; throws InvalidInput when that was in the middle of something. */
  end(): void {
    if (this.#expects === "end") return;
    if (this.#expects !== "header" || this.#partial !== undefined) {
      throw new InvalidInput("the archive ends in the middle of an entry");
    }
    this.#atEnd();
  }

  #atEnd(): void {
    if (this.#headers > 0) throw new InvalidInput("the archive ends after an extended header");
    this.#expects = "end";
  }

  #block(block: Buffer): void {
    switch (this.#expects) {
      case "header":
        if (isEndBlock(block)) this.#atEnd();
        else this.#header(block);
        break;
      case "extension":
        this.#extended(block);
        break;
      case "sparse-header":
        if (this.#sparse !== undefined && !readSparseExtension(block, this.#sparse.map)) {
          this.#sparseEntry(this.#sparse.map, this.#sparse.entry.sizeBytes);
        }
        break;
      case "sparse-map":
        this.#left -= blockBytes;
        if (this.#inContent?.addBlock(block) === true) this.#sparseEntry(this.#inContent.map, this.#left);
        else if (this.#left < blockBytes) throw new InvalidInput("a sparse file's map is longer than its content");
        break;
      default:
    }
  }

  #header(block: Buffer): void {
    if (++this.#headers > maxHeadersPerEntry) throw new InvalidInput("too many extended headers precede one entry");
    const header = decodeHeader(block);
    if (header.typeflag === "x" || header.typeflag === "g" || header.typeflag === "L" || header.typeflag === "K") {
      if (header.sizeBytes < 0 || header.sizeBytes > maxExtendedHeaderBytes) {
        throw new InvalidInput(`an extended header is over ${maxExtendedHeaderBytes} bytes`);
      }
      this.#extension = header;
      if (header.sizeBytes === 0) this.#extended(Buffer.alloc(0));
      else this.#expect("extension", header.sizeBytes + paddingOf(header.sizeBytes));
      return;
    }
    const entry = entryOf(header, { pax: this.#pax, longName: this.#longName, longLinkName: this.#longLinkName });
    const pax = paxSparse(this.#pax);
    if (pax === undefined && header.typeflag !== "S") {
      this.#entry(entry, entry.sizeBytes);
      return;
    }
    if (entry.type !== "file" || (pax !== undefined && header.typeflag === "S")) {
      throw new InvalidInput("a sparse file's map belongs to no file");
    }
    if (pax === undefined) {
      const map = new SparseMap();
      const { sizeBytes, more } = readSparseHeader(block, map);
      this.#sparse = { entry, sizeBytes, map };
      if (more) this.#expect("sparse-header", blockBytes);
      else this.#sparseEntry(map, entry.sizeBytes);
    } else {
      const renamed = { ...entry, name: textOf(this.#pax, "GNU.sparse.name") ?? entry.name };
      if (renamed.name.includes("\0")) throw new InvalidInput("a name holds a NUL byte");
      this.#sparse = { entry: renamed, sizeBytes: pax.sizeBytes, map: new SparseMap() };
      if (pax.map !== "in-content") {
        this.#sparseEntry(pax.map, entry.sizeBytes);
        return;
      }
      if (entry.sizeBytes < blockBytes) throw new InvalidInput("a sparse file's map is longer than its content");
      this.#left = entry.sizeBytes;
      this.#inContent = new InContentMap();
      this.#expect("sparse-map", blockBytes);
    }
  }

  #extended(body: Buffer): void {
    const header = this.#extension;
    if (header === undefined) return;
    const content = body.subarray(0, header.sizeBytes);
    // A copy where records outlive the chunk that they came in.
    if (header.typeflag === "x") this.#pax = decodePax(Buffer.from(content));
    else if (header.typeflag === "L") this.#longName = untilNul(content);
    else if (header.typeflag === "K") this.#longLinkName = untilNul(content);
    // "g": archive-wide records, to which no image tool gives a meaning
    this.#expect("header", blockBytes);
  }

  #sparseEntry(map: SparseMap, storedBytes: number): void {
    if (this.#sparse === undefined) return;
    const { entry, sizeBytes } = this.#sparse;
    const { data } = map.finish(sizeBytes, storedBytes);
    const whole = data.length === 1 && data[0]?.length === sizeBytes;
    this.#entry({ ...entry, sizeBytes, ...(whole || sizeBytes === 0 ? {} : { data }) }, storedBytes);
  }

  #entry(entry: TarEntry, storedBytes: number): void {
    this.#headers = 0;
    this.#pax = undefined;
    this.#longName = undefined;
    this.#longLinkName = undefined;
    this.#sparse = undefined;
    this.#inContent = undefined;
    this.#left = storedBytes;
    this.#padding = paddingOf(storedBytes);
    this.#sink.entry(entry);
    if (storedBytes > 0) this.#expects = "content";
    else this.#expect("header", blockBytes);
  }

  #contentEnded(): void {
    if (this.#expects === "content" && this.#padding > 0) {
      this.#expects = "skip";
      this.#left = this.#padding;
    } else {
      this.#expect("header", blockBytes);
    }
  }

  #expect(what: "header" | "extension" | "sparse-header" | "sparse-map", bytes: number): void {
    this.#expects = what;
    this.#blockBytes = bytes;
  }
}

function paddingOf(sizeBytes: number): number {
  return (blockBytes - (sizeBytes % blockBytes)) % blockBytes;
}

function untilNul(body: Buffer): ByteString {
  const end = body.indexOf(0);
  return body.toString("latin1", 0, end < 0 ? body.length : end);
}
