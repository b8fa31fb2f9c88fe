import { generateKeyPairSync } from "node:crypto";
import { readSigningKey, type SigningKey } from "../keys.ts";
import { type RootfsProvenance, signProvenance } from "../provenance.ts";

/** A key as builderd has one, and its PEM. */
export function makeSigningKey(): SigningKey & { readonly privateKeyPem: string } {
  const { privateKey } = generateKeyPairSync("ed25519");
  const privateKeyPem = privateKey.export({ type: "pkcs8", format: "pem" });
  return { ...readSigningKey(privateKeyPem), privateKeyPem };
}

/** The provenance of a root filesystem that a test made itself, as builderd would have signed it. */
export function provenanceOf(rootfsDigest: string, key: SigningKey, overrides: Partial<RootfsProvenance> = {}): Buffer {
  const some = { digest: `sha256:${"11".repeat(32)}`, sizeBytes: 1 };
  return signProvenance(
    {
      image: { reference: "registry.test/app:1" },
      platform: "linux/amd64",
      format: "erofs",
      policyDigest: some.digest,
      manifestDigest: some.digest,
      config: some,
      layers: [some],
      signatures: [],
      rootfs: { digest: rootfsDigest, sizeBytes: 1 },
      sbom: some,
      builderId: "spiffe://unkey.test/builderd",
      builderVersion: { test: "1" },
      invocationId: "build_test",
      startedAtMs: 0,
      finishedAtMs: 1000,
      ...overrides,
    },
    key,
  );
}
