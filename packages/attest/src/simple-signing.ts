import { InvalidAttestation } from "./invalid-attestation.ts";
import { asObject, asString, parseJsonObject } from "./json.ts";

/* What cosign signs: https://github.com/sigstore/cosign/blob/main/specs/SIGNATURE_SPEC.md and containers-signature(5) */

export const simpleSigningMediaType = "application/vnd.dev.cosign.simplesigning.v1+json";
export const signatureAnnotation = "dev.cosignproject.cosign/signature";

export interface SimpleSigningPayload {
  readonly manifestDigest: string;
  /** Repository that the signer meant; empty when it named none. */
  readonly dockerReference: string;
}

const cosignType = "cosign container image signature";
const maxPayloadBytes = 64 * 1024;

/** Reads a payload whose signature has been verified. Throws InvalidAttestation. */
export function parseSimpleSigning(bytes: Uint8Array): SimpleSigningPayload {
  const critical = asObject(
    parseJsonObject(bytes, maxPayloadBytes, "the payload")["critical"],
    "the payload's critical",
  );
  if (critical["type"] !== cosignType) throw new InvalidAttestation("the payload is not about a container image");
  const image = asObject(critical["image"], "the payload's image");
  const identity = asObject(critical["identity"] ?? {}, "the payload's identity");
  return {
    manifestDigest: asString(image["docker-manifest-digest"], 256, "the payload's digest"),
    dockerReference: asString(identity["docker-reference"] ?? "", 1024, "the payload's docker-reference"),
  };
}
