import type { ByteString } from "../byte-string.ts";
import { InvalidInput } from "../invalid-input.ts";
import { ChunkReader } from "./chunk-reader.ts";
import { blockBytes, decodeHeader, decodePax, isEndBlock, type RawHeader } from "./tar-header.ts";

export type TarEntryType = "file" | "hardlink" | "symlink" | "char" | "block" | "directory" | "fifo";

export interface TarEntry {
  /** Position among the archive's entries, from 0: names the entry when the archive is read a second time. */
  readonly ordinal: number;
  readonly type: TarEntryType;
  /** As written: may be absolute, hold `..`, or end in a slash. */
  readonly name: ByteString;
  readonly linkName: ByteString;
  /** Permission bits with setuid, setgid and sticky. */
  readonly mode: number;
  readonly uid: number;
  readonly gid: number;
  readonly mtimeNs: bigint;
  /** Bytes of content; 0 for anything but a file. */
  readonly sizeBytes: number;
  readonly deviceMajor: number;
  readonly deviceMinor: number;
  readonly xattrs: ReadonlyMap<ByteString, Buffer>;
}

const maxExtendedHeaderBytes = 1024 * 1024;
/** Headers that describe one following entry; more than these is an attempt to keep the reader busy. */
const maxHeadersPerEntry = 16;
const xattrPrefix = "SCHILY.xattr.";
/** The highest id is what chown(2) takes for "leave it". */
const maxId = 0xfffffffe;

const types: Readonly<Record<string, TarEntryType>> = {
  "\0": "file",
  "0": "file",
  "7": "file", // contiguous file: a file on every system that reads it today
  "1": "hardlink",
  "2": "symlink",
  "3": "char",
  "4": "block",
  "5": "directory",
  "6": "fifo",
};

/**
 * Reads a tar archive from untrusted bytes: ustar, PAX, GNU long names and base-256 numbers. Names and attribute values
 * stay bytes, which is why no general tar package is used: those decode them as UTF-8 and so destroy file capabilities.
 * Sparse files and other extensions that change what content means are refused. Throws InvalidInput.
 */
export class TarReader {
  readonly #reader: ChunkReader;
  #ordinal = 0;
  #current: TarEntry | undefined;
  #unread = 0;
  #padding = 0;

  constructor(chunks: AsyncIterable<Uint8Array>) {
    this.#reader = new ChunkReader(chunks);
  }

  /** The next entry, passing over what was not read of the last one; undefined at the end, with the input drained. */
  async next(): Promise<TarEntry | undefined> {
    await this.#reader.skip(this.#unread + this.#padding);
    this.#unread = 0;
    this.#padding = 0;
    let pax: ReadonlyMap<ByteString, Buffer> = new Map();
    let longName: ByteString | undefined;
    let longLinkName: ByteString | undefined;
    for (let headers = 0; headers < maxHeadersPerEntry; headers++) {
      const block = await this.#reader.read(blockBytes);
      if (block === undefined || isEndBlock(block)) {
        if (headers > 0) throw new InvalidInput("the archive ends after an extended header");
        // What follows the end mark belongs to no entry, but it does belong to the digest of the stream.
        await this.#reader.drain();
        this.#current = undefined;
        return undefined;
      }
      const header = decodeHeader(block);
      switch (header.typeflag) {
        case "x":
          pax = decodePax(await this.#extension(header));
          continue;
        case "g": // archive-wide records: no image tool gives them meaning
          await this.#extension(header);
          continue;
        case "L":
          longName = untilNul(await this.#extension(header));
          continue;
        case "K":
          longLinkName = untilNul(await this.#extension(header));
          continue;
        default:
          this.#current = this.#entry(header, pax, longName, longLinkName);
          return this.#current;
      }
    }
    throw new InvalidInput("too many extended headers precede one entry");
  }

  /** The content of the entry that `next` returned last; once. */
  async *content(): AsyncGenerator<Buffer> {
    const length = this.#unread;
    this.#unread = 0;
    let left = length;
    try {
      for await (const chunk of this.#reader.take(length)) {
        left -= chunk.length;
        yield chunk;
      }
    } finally {
      this.#unread = left;
    }
  }

  /** Releases the input early. */
  async close(): Promise<void> {
    await this.#reader.close();
  }

  async #extension(header: RawHeader): Promise<Buffer> {
    if (header.sizeBytes < 0 || header.sizeBytes > maxExtendedHeaderBytes) {
      throw new InvalidInput(`an extended header is over ${maxExtendedHeaderBytes} bytes`);
    }
    const body = header.sizeBytes === 0 ? Buffer.alloc(0) : await this.#reader.read(header.sizeBytes);
    if (body === undefined) throw new InvalidInput("the archive ends in the middle of an entry");
    const copy = Buffer.from(body); // records outlive the chunk they came in
    await this.#reader.skip(padding(header.sizeBytes));
    return copy;
  }

  #entry(
    header: RawHeader,
    pax: ReadonlyMap<ByteString, Buffer>,
    longName: ByteString | undefined,
    longLinkName: ByteString | undefined,
  ): TarEntry {
    for (const key of pax.keys()) {
      if (key.startsWith("GNU.sparse.")) throw new InvalidInput("sparse files are not supported");
    }
    if (header.typeflag === "S") throw new InvalidInput("sparse files are not supported");
    const name = text(pax, "path") ?? longName ?? header.name;
    let type = types[header.typeflag];
    if (type === undefined)
      throw new InvalidInput(`entries of type ${JSON.stringify(header.typeflag)} are not supported`);
    if (type === "file" && name.endsWith("/")) type = "directory"; // how tar wrote directories before ustar
    const linkName = text(pax, "linkpath") ?? longLinkName ?? header.linkName;
    for (const value of [name, linkName]) {
      if (value.includes("\0")) throw new InvalidInput("a name holds a NUL byte");
    }
    const declared = integer(pax, "size", Number.MAX_SAFE_INTEGER) ?? header.sizeBytes;
    if (declared < 0) throw new InvalidInput("an entry has a negative size");
    const sizeBytes = type === "file" ? declared : 0;
    this.#unread = sizeBytes;
    this.#padding = padding(sizeBytes);
    const xattrs = new Map<ByteString, Buffer>();
    for (const [key, value] of pax) {
      if (key.startsWith(xattrPrefix)) xattrs.set(key.slice(xattrPrefix.length), value);
    }
    return {
      ordinal: this.#ordinal++,
      type,
      name,
      linkName,
      mode: header.mode & 0o7777,
      uid: id(integer(pax, "uid", maxId) ?? header.uid),
      gid: id(integer(pax, "gid", maxId) ?? header.gid),
      mtimeNs: paxTime(pax, "mtime") ?? BigInt(header.mtimeSeconds) * 1_000_000_000n,
      sizeBytes,
      deviceMajor: header.deviceMajor,
      deviceMinor: header.deviceMinor,
      xattrs,
    };
  }
}

function padding(sizeBytes: number): number {
  return (blockBytes - (sizeBytes % blockBytes)) % blockBytes;
}

function untilNul(body: Buffer): ByteString {
  const end = body.indexOf(0);
  return body.toString("latin1", 0, end < 0 ? body.length : end);
}

/** A record's value; an empty one means that the header's own field holds. */
function text(pax: ReadonlyMap<ByteString, Buffer>, key: string): ByteString | undefined {
  const value = pax.get(key)?.toString("latin1");
  return value === "" ? undefined : value;
}

function integer(pax: ReadonlyMap<ByteString, Buffer>, key: string, max: number): number | undefined {
  const value = text(pax, key);
  if (value === undefined) return undefined;
  const number = Number(value);
  if (!/^\d{1,16}$/.test(value) || number > max) throw new InvalidInput(`an extended header's ${key} is out of range`);
  return number;
}

function id(value: number): number {
  if (value < 0 || value > maxId) throw new InvalidInput(`owner ${value} is out of range`);
  return value;
}

/** Decimal seconds with an optional fraction, kept to the nanosecond. */
function paxTime(pax: ReadonlyMap<ByteString, Buffer>, key: string): bigint | undefined {
  const value = text(pax, key);
  if (value === undefined) return undefined;
  const match = /^(-?)(\d{1,15})(?:\.(\d*))?$/.exec(value);
  if (match === null) throw new InvalidInput(`an extended header's ${key} is not a time`);
  const ns = BigInt(match[2] ?? "0") * 1_000_000_000n + BigInt((match[3] ?? "").slice(0, 9).padEnd(9, "0"));
  return match[1] === "-" ? -ns : ns;
}
