/* What finds packages in a tree, for the process that reads the tree: no keys, no statements. */
export { PackageScan } from "./package-scan.ts";
