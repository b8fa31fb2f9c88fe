import { mib } from "@unkey/base";

/*
 * A root filesystem takes the content of large layers as it is: each is an asset and a drive of its own, which images share. The
 * content of the others is copied into the root filesystem's tree image. Which are large is told by the manifest, so that a layer's
 * content can be stored while other layers are still on their way.
 */

/** Drives cost a guest interrupts and memory, and a hypervisor has few. */
const maxParts = 8;
/** Below these a drive costs more than a copy. */
const minPackedBytes = 4 * mib;
const minContentBytes = 4 * mib;

/** The layers that become parts if their content is worth it. The same manifest gives the same answer. */
export function choosePartLayers(
  layers: readonly { readonly digest: string; readonly sizeBytes: number }[],
): Set<string> {
  const sizes = new Map(layers.map(({ digest, sizeBytes }) => [digest, sizeBytes]));
  const large = [...sizes].filter(([, sizeBytes]) => sizeBytes >= minPackedBytes);
  // Sorting is stable: of equal ones the lower layer.
  return new Set(
    large
      .sort(([, a], [, b]) => b - a)
      .slice(0, maxParts)
      .map(([digest]) => digest),
  );
}

/** A layer may be all small files or holes, which have no place in its content. */
export function isWorthAPart(contentBytes: number): boolean {
  return contentBytes >= minContentBytes;
}
