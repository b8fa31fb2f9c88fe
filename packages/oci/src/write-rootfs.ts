import { createReadStream } from "node:fs";
import { mkdtemp, rm } from "node:fs/promises";
import { join } from "node:path";
import type { LayerBlob } from "./layer/layer-stream.ts";
import type { ImageLimits } from "./layer/limits.ts";
import { unpackLayer } from "./layer/unpack-layer.ts";
import { type AssembledRootfs, assembleRootfs } from "./rootfs/assemble-rootfs.ts";

export interface WriteRootfsOptions {
  /** Lowest first. */
  readonly layers: readonly LayerBlob[];
  /** Existing private directory; what is made in it is removed again. */
  readonly scratchDirectory: string;
  readonly imagePath: string;
  /** See `AssembleRootfsOptions.identity`. */
  readonly identity: string;
  readonly limits: ImageLimits;
  readonly signal: AbortSignal;
  /** Called with the growing number of content bytes written and their known total. */
  readonly onBytes?: (doneBytes: number, totalBytes: number) => void;
  /** Called between unpacking the layers and writing the image. */
  readonly onWriting?: () => Promise<void>;
}

/** What this host lacks to write a root filesystem, as a sentence each: for health reports. Empty when it can. */
export async function rootfsObstacles(): Promise<string[]> {
  return [];
}

/** Turns layers into an EROFS image; the same layers and identity give the same bytes. */
export async function writeRootfs(options: WriteRootfsOptions): Promise<AssembledRootfs> {
  const { layers, scratchDirectory, limits, signal, onWriting, ...rest } = options;
  const made: string[] = [];
  try {
    const unpacked = [];
    for (const { path, digest, diffId, sizeBytes } of layers) {
      const directory = await mkdtemp(join(scratchDirectory, "layer-"));
      made.push(directory);
      await unpackLayer(createReadStream(path), { digest, diffId, sizeBytes, directory, limits, signal });
      unpacked.push({ digest, diffId, directory });
    }
    await onWriting?.();
    return await assembleRootfs({
      ...rest,
      layers: unpacked,
      format: "erofs",
      limits,
      policy: { setuid: "keep" },
      scratchDirectory,
      signal,
    });
  } finally {
    for (const directory of made) await rm(directory, { recursive: true, force: true });
  }
}
