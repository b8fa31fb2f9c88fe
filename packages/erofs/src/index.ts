export type {
  ErofsDirectory,
  ErofsFile,
  ErofsMetadata,
  ErofsNode,
  ErofsRange,
  ErofsSpecial,
  ErofsSymlink,
} from "./tree.ts";
export { type ErofsImage, type ErofsOptions, writeErofs } from "./write-erofs.ts";
