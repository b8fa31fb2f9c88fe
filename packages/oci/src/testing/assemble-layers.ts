import {
  type AssembledRootfs,
  type AssemblyOptions,
  RootfsAssembly,
  type UnpackedLayer,
  type WriteRootfsOptions,
} from "../rootfs/rootfs-assembly.ts";

/** A layer, and the digest of its content (hex digits) when that is a device. */
export interface TestUnpackedLayer extends UnpackedLayer {
  readonly device?: string;
}

export type AssembleLayersOptions = Omit<AssemblyOptions, "layerCount"> &
  Omit<WriteRootfsOptions, "devices"> & { readonly layers: readonly TestUnpackedLayer[] };

/** A whole assembly in one call. */
export async function assembleLayers({
  layers,
  limits,
  signal,
  ...rest
}: AssembleLayersOptions): Promise<AssembledRootfs> {
  await using assembly = new RootfsAssembly({ layerCount: layers.length, limits, signal });
  for (const layer of layers) await assembly.add(layer);
  return await assembly.write({ ...rest, devices: layers.map(({ device }) => device) });
}
