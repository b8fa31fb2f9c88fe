import { createHash, createPrivateKey, createPublicKey, type KeyObject, sign, verify } from "node:crypto";
import { InvalidAttestation } from "./invalid-attestation.ts";

/** A key that signatures are judged by. */
export interface VerificationKey {
  /** SHA256:<hex> of the key's SubjectPublicKeyInfo: tells keys apart in messages, and is a hint in envelopes. */
  readonly id: string;
  /** Such as "Ed25519" or "ECDSA P-256". */
  readonly algorithm: string;
  /** Never throws for what a signature contains. */
  verify(data: Uint8Array, signature: Uint8Array): boolean;
}

/** A private key and the public one that it belongs to. */
export interface SigningKey {
  readonly id: string;
  readonly publicKeyPem: string;
  readonly verificationKey: VerificationKey;
  sign(data: Uint8Array): Buffer;
}

/** Who lists more keys than this has mistaken the file. */
const maxKeys = 64;
const maxPemBytes = 256 * 1024;
const minRsaBits = 2048;
/** An RSA signature of 16384 bits; those of the other kinds are shorter. */
const maxSignatureBytes = 2048;
const pemBlock = /-----BEGIN ([A-Z0-9 ]{1,64})-----[^-]*-----END \1-----/g;

/**
 * Reads one or more public keys (PEM, SubjectPublicKeyInfo): Ed25519, ECDSA P-256 and P-384, RSA of at least 2048 bits.
 * Throws InvalidAttestation that says what is wrong with which key.
 */
export function readVerificationKeys(pem: string): readonly [VerificationKey, ...VerificationKey[]] {
  if (pem.length > maxPemBytes) throw new InvalidAttestation(`the keys have more than ${maxPemBytes} bytes`);
  const blocks = [...pem.matchAll(pemBlock)];
  if (blocks.length > maxKeys) throw new InvalidAttestation(`there are ${blocks.length} keys; at most ${maxKeys}`);
  const [first, ...rest] = blocks.map(([block, label], index) => {
    if (label !== "PUBLIC KEY") {
      throw new InvalidAttestation(`block ${index + 1} is a ${label ?? ""}, not a PUBLIC KEY`);
    }
    return verificationKey(readPublicKey(block, index), `key ${index + 1}`);
  });
  if (first === undefined) throw new InvalidAttestation("there is no PUBLIC KEY block in PEM");
  return [first, ...rest];
}

/** Reads a private key (PEM, PKCS #8): Ed25519 or ECDSA P-256. Throws InvalidAttestation without a word of the key. */
export function readSigningKey(pem: string): SigningKey {
  let privateKey: KeyObject;
  try {
    privateKey = createPrivateKey(pem);
  } catch {
    throw new InvalidAttestation("it is not a private key in PEM");
  }
  const publicKey = createPublicKey(privateKey);
  const verification = verificationKey(publicKey, "it");
  if (verification.algorithm !== "Ed25519" && verification.algorithm !== "ECDSA P-256") {
    throw new InvalidAttestation(`it is ${verification.algorithm}; sign with Ed25519 or ECDSA P-256`);
  }
  const hash = verification.algorithm === "Ed25519" ? null : "sha256";
  return {
    id: verification.id,
    publicKeyPem: publicKey.export({ type: "spki", format: "pem" }),
    verificationKey: verification,
    sign: (data) => sign(hash, data, privateKey),
  };
}

function readPublicKey(block: string, index: number): KeyObject {
  try {
    return createPublicKey(block);
  } catch {
    throw new InvalidAttestation(`key ${index + 1} cannot be read`);
  }
}

function verificationKey(key: KeyObject, what: string): VerificationKey {
  const { algorithm, hashes } = kindOf(key, what);
  return {
    id: `SHA256:${createHash("sha256")
      .update(key.export({ type: "spki", format: "der" }))
      .digest("hex")}`,
    algorithm,
    verify(data, signature) {
      if (signature.length === 0 || signature.length > maxSignatureBytes) return false;
      return hashes.some((hash) => {
        try {
          return verify(hash, data, key, signature);
        } catch {
          return false; // a signature of another shape than the key's
        }
      });
    },
  };
}

/** Hashes that a signature by the key may have been made with: with P-384, signers differ. RSA is PKCS #1 v1.5. */
function kindOf(key: KeyObject, what: string): { algorithm: string; hashes: readonly (string | null)[] } {
  const { namedCurve, modulusLength = 0 } = key.asymmetricKeyDetails ?? {};
  switch (key.asymmetricKeyType) {
    case "ed25519":
      return { algorithm: "Ed25519", hashes: [null] };
    case "ec":
      if (namedCurve === "prime256v1") return { algorithm: "ECDSA P-256", hashes: ["sha256"] };
      if (namedCurve === "secp384r1") return { algorithm: "ECDSA P-384", hashes: ["sha256", "sha384"] };
      throw new InvalidAttestation(`${what} is on the curve ${namedCurve ?? "?"}; use P-256 or P-384`);
    case "rsa":
      if (modulusLength >= minRsaBits) return { algorithm: `RSA ${modulusLength}`, hashes: ["sha256"] };
      throw new InvalidAttestation(`${what} is RSA of ${modulusLength} bits; at least ${minRsaBits} are needed`);
    default:
      throw new InvalidAttestation(`${what} is of the kind ${key.asymmetricKeyType ?? "?"}; use Ed25519, ECDSA or RSA`);
  }
}
