import { type Digest, digestAlgorithm, digestHex, isDigest } from "../digest.ts";

/* File names of an OCI image layout: https://github.com/opencontainers/image-spec/blob/v1.1.0/image-layout.md */

export const layoutFile = "oci-layout";
export const indexFile = "index.json";
export const layoutVersion = "1.0.0";
export const maxLayoutFileBytes = 4096;

export function blobFile(digest: Digest): string {
  return `blobs/${digestAlgorithm(digest)}/${digestHex(digest)}`;
}

/** The digest that a file name of the layout stands for; undefined for any other name. */
export function digestOfBlobFile(name: string): Digest | undefined {
  const match = /^blobs\/([a-z0-9]+)\/([0-9a-f]+)$/.exec(name);
  const digest = `${match?.[1]}:${match?.[2]}`;
  return isDigest(digest) ? digest : undefined;
}
