import { StreamingDigest, shortDigest } from "../digest.ts";
import { InvalidInput, rethrowInvalid } from "../invalid-input.ts";
import { TarReader } from "../tar/tar-reader.ts";
import { LayerMerger, type MergedTree } from "./layer-merger.ts";
import { type LayerBlob, layerStream } from "./layer-stream.ts";
import { checkBytes, checkCount, type ImageLimits } from "./limits.ts";

export interface MergeOptions {
  readonly limits: ImageLimits;
  readonly signal: AbortSignal;
  /** Called with the growing number of tar bytes read. */
  readonly onBytes?: (bytes: number) => void;
}

/**
 * Merges layers, lowest first, into one tree of metadata; content stays in the layers. Each layer's tar stream is checked
 * against its diff id. Throws IMAGE_LAYER_INVALID naming the layer, or IMAGE_TOO_LARGE.
 */
export async function mergeLayers(layers: readonly LayerBlob[], options: MergeOptions): Promise<MergedTree> {
  const { limits, signal, onBytes } = options;
  checkCount("the image's layers are", layers.length, limits.layers);
  const merger = new LayerMerger(limits);
  let totalBytes = 0;
  for (const [index, layer] of layers.entries()) {
    merger.nextLayer();
    const digest = new StreamingDigest();
    async function* hashed(): AsyncGenerator<Buffer> {
      for await (const chunk of layerStream(layer, limits, signal)) {
        digest.update(chunk);
        totalBytes += chunk.length;
        checkBytes("the image unpacks to", totalBytes, limits.uncompressedBytes);
        onBytes?.(totalBytes);
        yield chunk;
      }
    }
    const reader = new TarReader(hashed());
    try {
      for (let entry = await reader.next(); entry !== undefined; entry = await reader.next()) merger.add(entry);
      if (layer.diffId !== digest.finish())
        throw new InvalidInput("it does not unpack to the digest in the image's config");
    } catch (error) {
      rethrowInvalid(
        error,
        "IMAGE_LAYER_INVALID",
        `layer ${index + 1} of ${layers.length} (${shortDigest(layer.digest)})`,
      );
    } finally {
      await reader.close();
    }
  }
  return merger.finish();
}
