import { mkdtemp, open, rm, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { compressionOf } from "../layer/decompress.ts";
import { type UnpackLayerOptions, unpackLayer } from "../layer/unpack-layer.ts";

export type UnpackBytesOptions = Omit<UnpackLayerOptions, "fd" | "compression" | "sizeBytes">;

/** Unpacks a layer that is in memory, from a file of its own. */
export async function unpackBytes(stored: Buffer, options: UnpackBytesOptions): Promise<void> {
  const folder = await mkdtemp(join(tmpdir(), "oci-layer-"));
  try {
    const path = join(folder, "layer");
    await writeFile(path, stored);
    await using file = await open(path);
    unpackLayer({ ...options, fd: file.fd, compression: compressionOf(stored), sizeBytes: stored.length });
  } finally {
    await rm(folder, { recursive: true });
  }
}
