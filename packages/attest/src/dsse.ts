import { InvalidAttestation } from "./invalid-attestation.ts";
import { asArray, asObject, asString, parseJsonObject } from "./json.ts";
import type { SigningKey, VerificationKey } from "./keys.ts";

/* Dead Simple Signing Envelope 1.0: https://github.com/secure-systems-lab/dsse/blob/v1.0.0/envelope.md and protocol.md */

/** A payload whose signature has been verified. */
export interface VerifiedPayload {
  readonly payloadType: string;
  readonly payload: Buffer;
  /** The key that signed; of several, the first that was asked about. */
  readonly key: VerificationKey;
}

/** Provenance of an image with thousands of layers stays far below it; a package list may come near. */
export const maxEnvelopeBytes = 16 * 1024 * 1024;
const maxSignatures = 16;
const maxTypeLength = 256;
/** Base64 of the longest signature that `VerificationKey` looks at. */
const maxSignatureLength = 2736;

/** What is signed: the type is covered too, so that a payload cannot be taken for one of another kind. */
function preAuthenticationEncoding(payloadType: string, payload: Uint8Array): Buffer {
  const type = Buffer.from(payloadType, "utf8");
  return Buffer.concat([Buffer.from(`DSSEv1 ${type.length} `), type, Buffer.from(` ${payload.length} `), payload]);
}

/** An envelope as JSON. With an Ed25519 key the same payload gives the same bytes. */
export function signEnvelope(payloadType: string, payload: Uint8Array, key: SigningKey): Buffer {
  const signature = key.sign(preAuthenticationEncoding(payloadType, payload));
  return Buffer.from(
    JSON.stringify({
      payloadType,
      payload: Buffer.from(payload).toString("base64"),
      signatures: [{ keyid: key.id, sig: signature.toString("base64") }],
    }),
  );
}

/**
 * The payload, if one of `keys` signed it. Nothing of the envelope but its signed bytes is believed; `keyid` is not looked
 * at. Throws InvalidAttestation.
 */
export function openEnvelope(bytes: Uint8Array, keys: readonly VerificationKey[]): VerifiedPayload {
  const envelope = parseJsonObject(bytes, maxEnvelopeBytes, "the envelope");
  const payloadType = asString(envelope["payloadType"], maxTypeLength, "the envelope's payloadType");
  const payload = decodeBase64(asString(envelope["payload"], maxEnvelopeBytes, "the envelope's payload"));
  if (payload === undefined) throw new InvalidAttestation("the envelope's payload is not base64");
  const signatures = asArray(envelope["signatures"], maxSignatures, "the envelope's signatures").map((signature) =>
    decodeBase64(asString(asObject(signature, "a signature")["sig"], maxSignatureLength, "a signature's sig")),
  );
  if (signatures.length === 0) throw new InvalidAttestation("the envelope has no signature");
  const signed = preAuthenticationEncoding(payloadType, payload);
  const key = keys.find((each) => signatures.some((sig) => sig !== undefined && each.verify(signed, sig)));
  if (key === undefined) throw new InvalidAttestation("none of the envelope's signatures is by a trusted key");
  return { payloadType, payload, key };
}

/** Standard or URL-safe, padded or not, as the format allows; undefined for anything else. */
export function decodeBase64(text: string): Buffer | undefined {
  if (!/^[A-Za-z0-9+/_-]*={0,2}$/.test(text)) return undefined;
  return Buffer.from(text, "base64");
}
