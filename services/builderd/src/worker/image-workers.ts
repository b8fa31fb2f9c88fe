import { chmod, chown, lstat, mkdir } from "node:fs/promises";
import { availableParallelism } from "node:os";
import { join } from "node:path";
import { mib } from "@unkey/base";
import type { Logger } from "@unkey/daemon";
import type { Digest, ImageLimits, ResolvedImage } from "@unkey/oci";
import { tellCompression } from "@unkey/oci/rootfs";
import type { SetuidPolicy } from "../domain/policy.ts";
import type { Sandbox } from "../sandbox/sandbox.ts";
import { encodeFrame } from "./frames.ts";
import type { AssembledRootfs, DigestsStep, LayerStep, WriteStep } from "./messages.ts";
import { misbehaved } from "./misbehaved.ts";
import { workerFlags } from "./program.ts";
import { runJob } from "./run-job.ts";

export interface UnpackOptions {
  /** Unique among jobs that run. */
  readonly name: string;
  readonly layer: ResolvedImage["layers"][number];
  readonly chunks: AsyncIterable<Uint8Array>;
  /** Does not exist yet; its parent does. */
  readonly directory: string;
  readonly limits: ImageLimits;
  readonly signal: AbortSignal;
  /** Of the layer as it travels. */
  readonly onBytes: (done: number) => void;
}

export interface AssemblerOptions {
  readonly name: string;
  /** It exists or its parent does, and holds at most `in`. */
  readonly directory: string;
  readonly layerCount: number;
  readonly limits: ImageLimits;
  readonly signal: AbortSignal;
  readonly onBytes: (done: number, total: number) => void;
}

export interface RootfsOptions {
  /** For each layer: whether its content is a part. */
  readonly isPart: readonly boolean[];
  /** Digests of the parts, `sha256:<hex>`: they may still be counted when writing begins. */
  readonly digests: Promise<readonly (string | undefined)[]>;
  readonly format: "erofs" | "ext4";
  /** Same layers, parts and identity, same bytes. */
  readonly identity: string;
  readonly setuid: SetuidPolicy;
}

export type RootfsInFile = AssembledRootfs & { readonly imagePath: string };

/** Does what reads an image's bytes, where that can do no harm. What is made may be wrong, but is only the image's own. */
export interface ImageWorkers {
  /** Answers the path of a complete layer directory, in `directory`. */
  unpackLayer(options: UnpackOptions): Promise<string>;
  startAssembler(options: AssemblerOptions): Promise<Assembler>;
}

/** A process that merges the layers of one image as they come. Disposal ends it, done or not. */
export interface Assembler extends AsyncDisposable {
  /** Names the next layer up; its directory is complete, below `in`. What is wrong with it is told at the end. */
  add(layer: { readonly digest: Digest; readonly diffId: Digest; readonly directory: string }): void;
  write(options: RootfsOptions): Promise<RootfsInFile>;
}

export interface SandboxedWorkersOptions {
  readonly sandbox: Sandbox;
  /** Of the worker: a TypeScript file, and arguments. */
  readonly program: readonly string[];
  readonly compileCache: string;
  /** Of one process. */
  readonly memoryBytes: number;
  readonly diskBytes: number;
  readonly log: Logger;
}

/** Layers of one build that are unpacked at once, one process each: one more than there are processors, since they wait for bytes that are fetched. */
export const parallelLayers = Math.min(4, availableParallelism() + 1);
const imageName = "rootfs";
/** A worker makes a handful. */
const maxFiles = 64;
/** builderd's own database, and what else is on its disk, must be able to go on. */
const reserveBytes = 512 * mib;
const openFiles = 1024; // two for each layer of the largest image, and Node's own
const processes = 64; // threads count: Node has about twelve

/**
 * Each job in a process of its own: what a layer does to the process that reads it stays with that layer, and cannot reach the
 * directories of others, which other tenants may use.
 */
export class SandboxedWorkers implements ImageWorkers {
  readonly #options: SandboxedWorkersOptions;

  constructor(options: SandboxedWorkersOptions) {
    this.#options = options;
  }

  async unpackLayer({ name, layer, chunks, directory, limits, signal, onBytes }: UnpackOptions): Promise<string> {
    await mkdir(directory, { mode: 0o755 });
    await using undo = new AsyncDisposableStack();
    const worker = undo.use(await this.#start(name, directory, workerFlags.unpack));
    // The process starts meanwhile.
    const told = await tellCompression(chunks);
    undo.move(); // it is the job's
    const { descriptor, diffId } = layer;
    const { digest, sizeBytes } = descriptor;
    const job = {
      kind: "unpack",
      digest,
      diffId,
      sizeBytes,
      compression: told.compression,
      limits,
      outDirectory: join(worker.directoryInside, "out"),
    } as const;
    await runJob(worker, job, { ...this.#jobOptions(directory), chunks: counted(told.chunks, onBytes), signal });
    return join(directory, "out");
  }

  async startAssembler({ name, directory, layerCount, limits, signal, onBytes }: AssemblerOptions): Promise<Assembler> {
    const worker = await this.#start(name, directory, workerFlags.assemble);
    const inside = worker.directoryInside;
    const job = { kind: "assemble", layerCount, limits } as const;
    const made = runJob(worker, job, { ...this.#jobOptions(directory), signal, onProgress: onBytes });
    made.catch(() => undefined); // told to whoever asks for the root filesystem
    const tell = (step: LayerStep | WriteStep | DigestsStep): void => void worker.control.write(encodeFrame(step));
    return {
      add: (layer) => tell({ kind: "layer", ...layer, directory: join(inside, "in", layer.directory) }),
      write: async ({ isPart, digests, ...rest }) => {
        const out = join(inside, "out");
        tell({ kind: "write", devices: isPart, imagePath: join(out, imageName), scratchDirectory: out, ...rest });
        const parts = await digests;
        tell({ kind: "digests", digests: parts.map((digest) => digest?.slice("sha256:".length) ?? null) });
        return takeImage(join(directory, "out", imageName), await made);
      },
      [Symbol.asyncDispose]: () => worker[Symbol.asyncDispose](),
    };
  }

  #start(name: string, directory: string, flags: readonly string[]) {
    const { sandbox, program, compileCache, memoryBytes, diskBytes } = this.#options;
    const heapMib = Math.floor((memoryBytes * 0.7) / mib);
    return sandbox.start({
      name,
      program: [process.execPath, ...flags, `--max-old-space-size=${heapMib}`, ...program],
      // One heap for all threads that gives back what it can: freed buffers would stay in it.
      env: { NODE_COMPILE_CACHE: compileCache, MALLOC_ARENA_MAX: "1", MALLOC_TRIM_THRESHOLD_: "131072" },
      directory,
      limits: { memoryBytes, cpuCount: availableParallelism(), processes, fileBytes: diskBytes, openFiles },
    });
  }

  #jobOptions(directory: string) {
    const { diskBytes, log } = this.#options;
    return { directory: join(directory, "out"), usage: { bytes: diskBytes, files: maxFiles, reserveBytes }, log };
  }
}

/** Tells of each chunk when the next is asked for: the worker has room for it then. */
async function* counted(
  chunks: AsyncIterable<Uint8Array>,
  onBytes: (done: number) => void,
): AsyncGenerator<Uint8Array> {
  let done = 0;
  for await (const chunk of chunks) {
    yield chunk;
    onBytes((done += chunk.length));
  }
}

/** Makes the image that a worker has left ours. */
async function takeImage(imagePath: string, rootfs: AssembledRootfs | undefined): Promise<RootfsInFile> {
  if (rootfs === undefined) throw new Error("an assembling worker has answered no root filesystem");
  const found = await lstat(imagePath).catch(() => undefined);
  if (found?.isFile() !== true || found.nlink !== 1 || found.size !== rootfs.sizeBytes) {
    throw misbehaved("has not left the file that it announced");
  }
  await chown(imagePath, process.getuid?.() ?? 0, process.getgid?.() ?? 0); // its maker is gone: nobody else writes to it
  await chmod(imagePath, 0o400);
  return { ...rootfs, imagePath };
}
