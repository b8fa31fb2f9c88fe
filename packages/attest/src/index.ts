export type { Ecosystem, Package, PackageList, UnreadFile } from "./packages/package-list.ts";
export { PackageScan } from "./packages/package-scan.ts";
