import { readFileSync } from "node:fs";
import { readSigningKey, readVerificationKeys, type SigningKey, type VerificationKey } from "@unkey/attest";
import type { Settings } from "@unkey/daemon";

export interface ProvenanceKeys {
  /** Signs provenance. */
  readonly provenanceKey: SigningKey;
  /** Judge provenance: the signing key's own, and earlier ones that are still believed. */
  readonly provenanceKeys: readonly VerificationKey[];
}

/** Reads PROVENANCE_KEY_FILE, which is required, and PROVENANCE_KEYS_FILE. */
export function readProvenanceKeys(settings: Settings): ProvenanceKeys {
  const provenanceKey = readKey(settings);
  const trusted = readTrusted(settings);
  const knowsOwn = trusted.some(({ id }) => id === provenanceKey.id);
  return { provenanceKey, provenanceKeys: knowsOwn ? trusted : [provenanceKey.verificationKey, ...trusted] };
}

function readKey(settings: Settings): SigningKey {
  const secret = settings.secretFile("PROVENANCE_KEY", { default: undefined });
  if (secret === undefined) {
    settings.mistake(
      "UNKEY_BUILDERD_PROVENANCE_KEY_FILE is required: a private key in PEM that only builderd can read; " +
        "`unkey dev up` makes one, and so does `openssl genpkey -algorithm ed25519`",
    );
    return nobody;
  }
  if (secret.reveal() === "") return nobody; // the mistake is noted
  try {
    return readSigningKey(secret.reveal());
  } catch (error) {
    settings.mistake(`UNKEY_BUILDERD_PROVENANCE_KEY_FILE: ${error instanceof Error ? error.message : String(error)}`);
    return nobody;
  }
}

function readTrusted(settings: Settings): readonly VerificationKey[] {
  const path = settings.path("PROVENANCE_KEYS_FILE", { default: undefined });
  if (path === undefined) return [];
  try {
    return readVerificationKeys(readFileSync(path, "utf8"));
  } catch (error) {
    settings.mistake(
      `UNKEY_BUILDERD_PROVENANCE_KEYS_FILE: ${path}: ${error instanceof Error ? error.message : String(error)}`,
    );
    return [];
  }
}

/** Stands in for a key that could not be read, until the configuration is refused. */
const nobody: SigningKey = {
  id: "",
  publicKeyPem: "",
  verificationKey: { id: "", algorithm: "", verify: () => false },
  sign: () => {
    throw new Error("there is no key");
  },
};
