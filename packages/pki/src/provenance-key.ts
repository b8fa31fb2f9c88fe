import { createPrivateKey, createPublicKey, generateKeyPairSync } from "node:crypto";
import { existsSync, mkdirSync, readFileSync, statSync } from "node:fs";
import { dirname } from "node:path";
import { ServiceError } from "@unkey/base";
import { writeFileAtomicSync } from "./files.ts";

export interface ProvenanceKeyFiles {
  /** Private key that builderd signs with: PKCS #8 PEM, mode 0600 in a directory of mode 0700. */
  readonly keyFile: string;
  /** Public keys that hosts believe: PEM blocks one after the other. */
  readonly trustedFile: string;
}

/**
 * Makes sure that there is a key for provenance and that its public half is trusted. It outlives certificates, because what
 * it signed has to be believed for as long as it is kept. To rotate, move `keyFile` away: the next call makes another, and
 * what the earlier one signed stays trusted until its block is taken out of `trustedFile`. Throws AUTHORITY_UNUSABLE.
 */
export function ensureProvenanceKey({ keyFile, trustedFile }: ProvenanceKeyFiles): void {
  if (!existsSync(keyFile)) {
    mkdirSync(dirname(keyFile), { recursive: true, mode: 0o700 });
    const { privateKey } = generateKeyPairSync("ed25519");
    writeFileAtomicSync(keyFile, privateKey.export({ type: "pkcs8", format: "pem" }), 0o600);
  }
  const trusted = existsSync(trustedFile) ? readFileSync(trustedFile, "utf8") : "";
  const publicPem = publicHalf(keyFile);
  if (trusted.includes(publicPem)) return;
  mkdirSync(dirname(trustedFile), { recursive: true, mode: 0o700 });
  writeFileAtomicSync(trustedFile, `${trusted.trimEnd()}\n${publicPem}`.trimStart(), 0o644);
}

function publicHalf(keyFile: string): string {
  if ((statSync(keyFile).mode & 0o077) !== 0) throw unusable(keyFile, "can be read by others; run chmod 600 on it");
  try {
    const key = createPublicKey(createPrivateKey(readFileSync(keyFile, "utf8")));
    return key.export({ type: "spki", format: "pem" });
  } catch (cause) {
    throw unusable(keyFile, "is not a private key in PEM", cause);
  }
}

function unusable(keyFile: string, why: string, cause?: unknown): ServiceError {
  return new ServiceError("AUTHORITY_UNUSABLE", `the provenance key ${keyFile} ${why}`, { cause });
}
