import { type FileHandle, open } from "node:fs/promises";
import { join } from "node:path";
import { kib, mib } from "@unkey/base";
import { type FileNode, storedBytes } from "../layer/tree.ts";
import { contentName, tailsName } from "../layer/unpack-layer.ts";

const bufferBytes = { content: 2 * mib, tails: 512 * kib };
/** Bytes that nobody wants any more are read along with their neighbours when they are fewer: less work than a read more. */
const maxGapBytes = 64 * kib;

/** Which of a layer directory's two files with data. */
type Part = "content" | "tails";

/** A piece of one layer's content or tails. */
interface Span {
  readonly layer: number;
  readonly from: number;
  readonly to: number;
}

/** A stretch of one of these files: `wanted` lies in it, in ascending ranges that do not overlap. */
interface Stretch extends Span {
  readonly wanted: readonly { readonly from: number; readonly to: number }[];
}

/** The `content` and `tails` files of an image's layers, open for reading. */
export class LayerContents implements AsyncDisposable {
  readonly #files: Record<Part, FileHandle>[] = [];

  /** Opens the next layer's; returns their lengths. */
  async open(directory: string): Promise<{ contentBytes: number; tailsBytes: number }> {
    const content = await open(join(directory, contentName));
    const tails = await open(join(directory, tailsName)).catch(async (error: unknown) => {
      await content.close();
      throw error;
    });
    this.#files.push({ content, tails });
    return { contentBytes: (await content.stat()).size, tailsBytes: (await tails.stat()).size };
  }

  /** A file as a reader sees it, holes as zeros. */
  async read(file: FileNode): Promise<Buffer> {
    const whole = Buffer.alloc(file.sizeBytes);
    const { contentOffset, contentBytes, tailsOffset } = file.stored;
    await this.#fill("content", file.layer, whole.subarray(0, contentBytes), contentOffset);
    let from = tailsOffset;
    for (const { offset, length } of file.data ?? [{ offset: contentBytes, length: file.sizeBytes - contentBytes }]) {
      await this.#fill("tails", file.layer, whole.subarray(offset, offset + length), from);
      from += length;
    }
    return whole;
  }

  /**
   * The data of `files`, concatenated, of those with a place in a device only their tails. They are ordered by layer and place. What
   * comes next is read while the consumer works on a chunk, which holds until the next is asked for.
   */
  async *stream(files: readonly FileNode[], signal: AbortSignal): AsyncGenerator<Buffer> {
    const parts = { content: new Cursor(this.#read("content", files)), tails: new Cursor(this.#read("tails", files)) };
    // What is to come from one of them, of as many files as follow each other.
    let part: Part = "content";
    let bytes = 0;
    const flush = async function* (): AsyncGenerator<Buffer> {
      while (bytes > 0) {
        signal.throwIfAborted();
        const chunk = await parts[part].take(bytes);
        bytes -= chunk.length;
        yield chunk;
      }
    };
    try {
      for (const file of files) {
        for (const next of ["content", "tails"] as const) {
          const { from, to } = spanOf(file, next);
          if (from === to) continue;
          if (part !== next) yield* flush();
          part = next;
          bytes += to - from;
        }
      }
      yield* flush();
    } finally {
      await parts.content.close();
      await parts.tails.close();
    }
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await Promise.all(this.#files.flatMap(({ content, tails }) => [content.close(), tails.close()]));
  }

  /** What is wanted of one of the files of each layer, in order, with the next read under way. */
  async *#read(part: Part, files: readonly FileNode[]): AsyncGenerator<Buffer> {
    const stretches = stretchesOf(spansOf(files, part), bufferBytes[part]);
    const buffers = [Buffer.allocUnsafeSlow(bufferBytes[part]), Buffer.allocUnsafeSlow(bufferBytes[part])];
    const start = (turn: number): { stretch: Stretch; bytes: Promise<Buffer> } | undefined => {
      const { value: stretch } = stretches.next();
      const buffer = buffers[turn % buffers.length];
      if (stretch === undefined || buffer === undefined) return undefined;
      const bytes = this.#fill(part, stretch.layer, buffer.subarray(0, stretch.to - stretch.from), stretch.from);
      bytes.catch(() => {}); // told when its turn has come
      return { stretch, bytes };
    };
    let turn = 0;
    let next = start(turn);
    try {
      while (next !== undefined) {
        const { stretch } = next;
        const bytes = await next.bytes;
        next = start(++turn);
        for (const { from, to } of stretch.wanted) yield bytes.subarray(from - stretch.from, to - stretch.from);
      }
    } finally {
      await next?.bytes.catch(() => {}); // a read into a buffer of ours must not outlive us
    }
  }

  async #fill(part: Part, layer: number, buffer: Buffer, position: number): Promise<Buffer> {
    const file = this.#files[layer]?.[part];
    if (file === undefined) throw new RangeError(`there is no layer ${layer}`);
    for (let at = 0; at < buffer.length; ) {
      const { bytesRead } = await file.read(buffer, at, buffer.length - at, position + at);
      if (bytesRead === 0) throw new RangeError("a layer's content is shorter than it was");
      at += bytesRead;
    }
    return buffer;
  }
}

/** Hands on chunks in pieces of any length. */
class Cursor {
  readonly #source: AsyncGenerator<Buffer>;
  #chunk: Buffer = Buffer.alloc(0);
  #at = 0;

  constructor(source: AsyncGenerator<Buffer>) {
    this.#source = source;
  }

  /** The next bytes, at least one of them and at most `most`. */
  async take(most: number): Promise<Buffer> {
    if (this.#at === this.#chunk.length) {
      const next = await this.#source.next();
      if (next.done === true) throw new RangeError("the layers hold less than their files");
      this.#chunk = next.value;
      this.#at = 0;
    }
    const taken = this.#chunk.subarray(this.#at, this.#at + most);
    this.#at += taken.length;
    return taken;
  }

  async close(): Promise<void> {
    await this.#source.return(undefined);
  }
}

/** What of a file is read from one of its layer's files. */
function spanOf(file: FileNode, part: Part): Span {
  const { layer, place, stored } = file;
  const { contentOffset, contentBytes, tailsOffset } = stored;
  return part === "content"
    ? { layer, from: contentOffset, to: contentOffset + (place === undefined ? contentBytes : 0) }
    : { layer, from: tailsOffset, to: tailsOffset + storedBytes(file) - contentBytes };
}

function* spansOf(files: readonly FileNode[], part: Part): Generator<Span> {
  for (const file of files) yield spanOf(file, part);
}

/** Cuts spans into stretches that fit a buffer each. */
function* stretchesOf(spans: Iterable<Span>, mostBytes: number): Generator<Stretch, undefined> {
  let layer = 0;
  let wanted: { from: number; to: number }[] = [];
  for (const span of spans) {
    let { from } = span;
    while (from < span.to) {
      const first = wanted[0];
      const last = wanted.at(-1);
      const far = last !== undefined && (span.layer !== layer || from - last.to > maxGapBytes);
      if (first !== undefined && last !== undefined && (far || from - first.from >= mostBytes)) {
        yield { layer, from: first.from, to: last.to, wanted };
        wanted = [];
        continue;
      }
      layer = span.layer;
      const to = Math.min(span.to, (first?.from ?? from) + mostBytes);
      if (last !== undefined && last.to === from) last.to = to;
      else wanted.push({ from, to });
      from = to;
    }
  }
  const first = wanted[0];
  const last = wanted.at(-1);
  if (first !== undefined && last !== undefined) yield { layer, from: first.from, to: last.to, wanted };
  return undefined;
}
