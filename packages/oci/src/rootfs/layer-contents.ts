import { type FileHandle, open } from "node:fs/promises";
import { join } from "node:path";
import { kib, mib } from "@unkey/base";
import { type FileNode, storedBytes } from "../layer/tree.ts";
import { contentName } from "../layer/unpack-layer.ts";

const bufferBytes = 2 * mib;
/** Bytes that nobody wants any more are read along with their neighbours when they are fewer: less work than a read more. */
const maxGapBytes = 64 * kib;

/** A stretch of one layer's content: `wanted` lies in it, in ascending ranges that do not overlap. */
interface Stretch {
  readonly layer: number;
  readonly from: number;
  readonly to: number;
  readonly wanted: readonly { readonly from: number; readonly to: number }[];
}

/** The `content` files of an image's layers, open for reading. */
export class LayerContents implements AsyncDisposable {
  readonly #files: readonly FileHandle[];

  private constructor(files: readonly FileHandle[]) {
    this.#files = files;
  }

  static async open(directories: readonly string[]): Promise<LayerContents> {
    const files: FileHandle[] = [];
    try {
      for (const directory of directories) files.push(await open(join(directory, contentName)));
      return new LayerContents(files);
    } catch (error) {
      await Promise.all(files.map((file) => file.close()));
      throw error;
    }
  }

  /** Length of a layer's content. */
  async sizeBytes(layer: number): Promise<number> {
    return (await this.#file(layer).stat()).size;
  }

  /** A file as a reader sees it, holes as zeros. */
  async read(file: FileNode): Promise<Buffer> {
    const whole = Buffer.alloc(file.sizeBytes);
    let offset = file.contentOffset;
    for (const range of file.data ?? [{ offset: 0, length: file.sizeBytes }]) {
      await this.#fill(file.layer, whole.subarray(range.offset, range.offset + range.length), offset);
      offset += range.length;
    }
    return whole;
  }

  /**
   * The data of `files`, concatenated. They are ordered by layer and place. The next stretch is read while the consumer works
   * on this one; a chunk holds until the next is asked for.
   */
  async *stream(files: readonly FileNode[], signal: AbortSignal): AsyncGenerator<Buffer> {
    const stretches = stretchesOf(files);
    const buffers = [Buffer.allocUnsafeSlow(bufferBytes), Buffer.allocUnsafeSlow(bufferBytes)];
    const start = (turn: number): { stretch: Stretch; bytes: Promise<Buffer> } | undefined => {
      const { value: stretch } = stretches.next();
      const buffer = buffers[turn % buffers.length];
      if (stretch === undefined || buffer === undefined) return undefined;
      const bytes = this.#fill(stretch.layer, buffer.subarray(0, stretch.to - stretch.from), stretch.from);
      bytes.catch(() => {}); // told when its turn has come
      return { stretch, bytes };
    };
    let turn = 0;
    let next = start(turn);
    try {
      while (next !== undefined) {
        signal.throwIfAborted();
        const { stretch } = next;
        const bytes = await next.bytes;
        next = start(++turn);
        for (const { from, to } of stretch.wanted) yield bytes.subarray(from - stretch.from, to - stretch.from);
      }
    } finally {
      await next?.bytes.catch(() => {}); // a read into a buffer of ours must not outlive us
    }
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await Promise.all(this.#files.map((file) => file.close()));
  }

  #file(layer: number): FileHandle {
    const file = this.#files[layer];
    if (file === undefined) throw new RangeError(`there is no layer ${layer}`);
    return file;
  }

  async #fill(layer: number, buffer: Buffer, position: number): Promise<Buffer> {
    for (let at = 0; at < buffer.length; ) {
      const { bytesRead } = await this.#file(layer).read(buffer, at, buffer.length - at, position + at);
      if (bytesRead === 0) throw new RangeError("a layer's content is shorter than it was");
      at += bytesRead;
    }
    return buffer;
  }
}

/** Cuts the files' data into stretches that fit a buffer each. */
function* stretchesOf(files: readonly FileNode[]): Generator<Stretch, undefined> {
  let layer = 0;
  let wanted: { from: number; to: number }[] = [];
  for (const file of files) {
    let from = file.contentOffset;
    for (let left = storedBytes(file); left > 0; ) {
      const first = wanted[0];
      const last = wanted.at(-1);
      const far = last !== undefined && (file.layer !== layer || from - last.to > maxGapBytes);
      if (first !== undefined && last !== undefined && (far || from - first.from >= bufferBytes)) {
        yield { layer, from: first.from, to: last.to, wanted };
        wanted = [];
        continue;
      }
      layer = file.layer;
      const to = Math.min(from + left, (first?.from ?? from) + bufferBytes);
      if (last !== undefined && last.to === from) last.to = to;
      else wanted.push({ from, to });
      left -= to - from;
      from = to;
    }
  }
  const first = wanted[0];
  const last = wanted.at(-1);
  if (first !== undefined && last !== undefined) yield { layer, from: first.from, to: last.to, wanted };
  return undefined;
}
