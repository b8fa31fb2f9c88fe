/* What a process needs that only makes root filesystems of layers: nothing here knows a registry. */
export { type UnpackLayerOptions, unpackLayer } from "../layer/unpack-layer.ts";
export {
  type AssembledRootfs,
  type AssembleRootfsOptions,
  assembleRootfs,
  type RootfsFacts,
  type UnpackedLayer,
} from "./assemble-rootfs.ts";
export type { TreePolicy } from "./tree-policy.ts";
