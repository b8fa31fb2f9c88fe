import { rm, writeFile } from "node:fs/promises";
import { join } from "node:path";
import { type Digest, digestAlgorithm, digestHex } from "../digest.ts";
import type { FetchOptions, ImageSource, ResolvedImage } from "../image-source.ts";
import { streamLayers } from "../stream-layers.ts";

/** Fetches an image's layers into files of `directory`, each digest once; what was not whole is removed. Lowest first. */
export async function fetchLayers(
  source: ImageSource,
  image: ResolvedImage,
  directory: string,
  options: FetchOptions,
): Promise<{ readonly digest: Digest; readonly path: string; readonly sizeBytes: number; readonly diffId: Digest }[]> {
  const pathOf = (digest: Digest): string => join(directory, `${digestAlgorithm(digest)}-${digestHex(digest)}`);
  const descriptors = image.layers.map(({ descriptor }) => descriptor);
  await streamLayers(source, descriptors, options, async ({ digest }, chunks) => {
    const path = pathOf(digest);
    try {
      await writeFile(path, chunks, { flag: "wx" });
    } catch (error) {
      await rm(path, { force: true });
      throw error;
    }
  });
  return image.layers.map(({ descriptor: { digest, sizeBytes }, diffId }) => ({
    digest,
    path: pathOf(digest),
    sizeBytes,
    diffId,
  }));
}
