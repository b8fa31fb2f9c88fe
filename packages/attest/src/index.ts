export { decodeBase64 } from "./dsse.ts";
export { InvalidAttestation } from "./invalid-attestation.ts";
export { readSigningKey, readVerificationKeys, type SigningKey, type VerificationKey } from "./keys.ts";
export type { Package, PackageList, UnreadFile } from "./packages/package-list.ts";
export {
  type ImageSignature,
  type ProvenanceImage,
  type RootfsProvenance,
  signProvenance,
  type VerifiedProvenance,
  verifyProvenance,
} from "./provenance.ts";
export { parseSimpleSigning, signatureAnnotation, simpleSigningMediaType } from "./simple-signing.ts";
export { spdxDocument } from "./spdx.ts";
export { isAbout, openStatement } from "./statement.ts";
