export { blockBytes, fileDataOf, maxInlineTailBytes } from "./format.ts";
export { deviceTableOf, readDeviceTable } from "./read-device-table.ts";
export type {
  ErofsDevice,
  ErofsDirectory,
  ErofsFile,
  ErofsMetadata,
  ErofsNewDevice,
  ErofsNode,
  ErofsPlace,
  ErofsRange,
  ErofsSpecial,
  ErofsSymlink,
} from "./tree.ts";
export { type ErofsImage, type ErofsOptions, writeErofs } from "./write-erofs.ts";
