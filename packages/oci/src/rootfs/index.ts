/* What a process needs that only makes root filesystems of layers: nothing here knows a registry. */
export { type Compression, tellCompression } from "../layer/decompress.ts";
export { type UnpackLayerOptions, unpackLayer } from "../layer/unpack-layer.ts";
export {
  type AssembledRootfs,
  type AssemblyOptions,
  RootfsAssembly,
  type RootfsFacts,
  type UnpackedLayer,
  type WriteRootfsOptions,
} from "./rootfs-assembly.ts";
export type { TreePolicy } from "./tree-policy.ts";
