import { renameSync } from "node:fs";
import { join } from "node:path";
import { type ByteString, printable } from "../byte-string.ts";
import { type Digest, digestAlgorithm, StreamingDigest, shortDigest } from "../digest.ts";
import { InvalidInput, rethrowInvalid } from "../invalid-input.ts";
import { noXattrs, type TarEntry } from "../tar/tar-entry.ts";
import { TarParser } from "../tar/tar-parser.ts";
import { AppendingFile } from "./appending-file.ts";
import { bounded } from "./decompress.ts";
import { type LayerFile, readTar } from "./layer-file.ts";
import { IndexEncoder } from "./layer-index.ts";
import { bytesPerRange, checkBytes, checkCount, type ImageLimits } from "./limits.ts";
import { contentBytesOf, paddingOf } from "./stored-data.ts";
import { keptXattrs, xattrBytes } from "./xattrs.ts";

/** Names in a layer directory. */
export const indexName = "index";
export const contentName = "content";
export const tailsName = "tails";

export interface UnpackLayerOptions extends LayerFile {
  /** Of the layer as it travels; named in errors. Whoever wrote the file checks it. */
  readonly digest: Digest;
  /** Of the layer as it travels: what its unpacked size is compared with. */
  readonly sizeBytes: number;
  /** Digest of the tar stream, from the image's config; checked here. */
  readonly diffId: Digest;
  /** Exists and is empty. */
  readonly directory: string;
  readonly limits: ImageLimits;
}

/**
 * Unpacks a layer into a layer directory: `content` and `tails`, the data of its files (stored-data.ts), and `index`, its entries.
 * The index appears last: a directory that has one is complete, unless the host lost its power, since nothing here waits for the
 * disk. After a failure the directory is the caller's to remove. The same archive gives the same three files. It is
 * for a process that is confined and does nothing else: hostile bytes meet zlib and a parser in it, and it waits for files and not for
 * events. Throws IMAGE_LAYER_INVALID naming the layer, IMAGE_TOO_LARGE or ROOTFS_DISK_FULL.
 */
export function unpackLayer(options: UnpackLayerOptions): void {
  const { digest, diffId, directory, limits } = options;
  using content = new AppendingFile(join(directory, contentName));
  using tails = new AppendingFile(join(directory, tailsName));
  const part = join(directory, `${indexName}.part`);
  using index = new AppendingFile(part);
  const hash = new StreamingDigest(digestAlgorithm(diffId));
  const sink = new LayerSink({ content, tails, limits, encoder: new IndexEncoder(diffId) });
  const parser = new TarParser(sink);
  try {
    for (const chunk of bounded(readTar(options), options)) {
      hash.update(chunk);
      parser.write(chunk);
      for (const piece of sink.encoder.take()) index.add(piece);
    }
    parser.end();
    if (hash.finish() !== diffId) throw new InvalidInput("it does not unpack to the digest in the image's config");
  } catch (error) {
    rethrowInvalid(error, "IMAGE_LAYER_INVALID", `layer ${shortDigest(digest)}`);
  }
  sink.encoder.addTail({
    entries: sink.entries,
    contentBytes: content.sizeBytes,
    tailsBytes: tails.sizeBytes,
    droppedXattrs: [...sink.dropped],
  });
  for (const piece of sink.encoder.take()) index.add(piece);
  for (const file of [content, tails, index]) file.finish();
  renameSync(part, join(directory, indexName));
}

/** Files content and entries; counts what one layer may hold, before the merger counts the image's. */
class LayerSink {
  readonly encoder: IndexEncoder;
  readonly dropped = new Set<ByteString>();
  entries = 0;
  readonly #content: AppendingFile;
  readonly #tails: AppendingFile;
  readonly #limits: ImageLimits;
  #metadataBytes = 0;
  /** Bytes of the file at hand that still belong to `content`, and the zeros behind them. */
  #contentLeft = 0;
  #padding = 0;

  constructor(parts: {
    readonly content: AppendingFile;
    readonly tails: AppendingFile;
    readonly encoder: IndexEncoder;
    readonly limits: ImageLimits;
  }) {
    this.#content = parts.content;
    this.#tails = parts.tails;
    this.encoder = parts.encoder;
    this.#limits = parts.limits;
  }

  entry(entry: TarEntry): void {
    const limits = this.#limits;
    const xattrs = entry.type === "hardlink" ? noXattrs : keptXattrs(entry, limits, this.dropped);
    checkCount("the layer's entries are", ++this.entries, limits.entries);
    checkBytes(() => `the file ${printable(entry.name)} is`, entry.sizeBytes, limits.fileBytes);
    this.#metadataBytes += entry.name.length + entry.linkName.length + xattrBytes(xattrs);
    this.#metadataBytes += (entry.data?.length ?? 0) * bytesPerRange;
    checkBytes("the layer's names and attributes are", this.#metadataBytes, limits.metadataBytes);
    const mtimeNs = clampTime(entry.mtimeNs);
    const kept = mtimeNs === entry.mtimeNs && xattrs === entry.xattrs ? entry : { ...entry, mtimeNs, xattrs };
    this.encoder.addEntry(kept);
    this.#contentLeft = contentBytesOf(kept);
    this.#padding = paddingOf(this.#contentLeft);
  }

  content(bytes: Buffer): void {
    const count = Math.min(bytes.length, this.#contentLeft);
    if (count > 0) {
      this.#content.add(bytes, 0, count);
      this.#contentLeft -= count;
      if (this.#contentLeft === 0) this.#content.addZeros(this.#padding);
    }
    if (count < bytes.length) this.#tails.add(bytes, count, bytes.length);
  }
}

/** From the epoch to the last second that every file system in use can hold (32 unsigned bits). */
const maxMtimeNs = (2n ** 32n - 1n) * 1_000_000_000n;

function clampTime(ns: bigint): bigint {
  return ns < 0n ? 0n : ns > maxMtimeNs ? maxMtimeNs : ns;
}
