import type { KeyObject } from "node:crypto";
import {
  createHash,
  createPrivateKey,
  createPublicKey,
  generateKeyPairSync,
  randomBytes,
  sign,
  X509Certificate,
} from "node:crypto";
import { isIPv4, isIPv6 } from "node:net";
import {
  ascii,
  bitString,
  booleanTrue,
  concat,
  context,
  contextPrimitive,
  type Der,
  integer,
  octetString,
  oid,
  sequence,
  set,
  time,
  utf8String,
} from "./der.ts";

/** Certificates as RFC 5280 describes them, with ECDSA P-256 keys and SHA-256 throughout. */
const oids = {
  ecdsaWithSha256: "1.2.840.10045.4.3.2",
  commonName: "2.5.4.3",
  organization: "2.5.4.10",
  subjectKeyId: "2.5.29.14",
  keyUsage: "2.5.29.15",
  subjectAltName: "2.5.29.17",
  basicConstraints: "2.5.29.19",
  nameConstraints: "2.5.29.30",
  authorityKeyId: "2.5.29.35",
  extendedKeyUsage: "2.5.29.37",
  serverAuth: "1.3.6.1.5.5.7.3.1",
  clientAuth: "1.3.6.1.5.5.7.3.2",
} as const;

/** The names that a leaf stands for. */
export interface SubjectNames {
  readonly uris?: readonly string[];
  readonly dnsNames?: readonly string[];
  readonly ips?: readonly string[];
}

export interface Validity {
  readonly notBeforeMs: number;
  readonly notAfterMs: number;
}

export interface KeyAndCertificate {
  readonly privateKey: KeyObject;
  readonly keyPem: string;
  readonly certPem: string;
}

/** A self-signed authority: signs leaves only, and with `permittedDns` only leaves under those domains. */
export function makeAuthority(
  options: Validity & { readonly commonName: string; readonly permittedDns?: readonly string[] },
): KeyAndCertificate {
  const { privateKey, publicKey } = generateKeyPairSync("ec", { namedCurve: "P-256" });
  const name = distinguishedName(options.commonName);
  const extensions = [
    extension(oids.basicConstraints, true, sequence(booleanTrue, integer(Uint8Array.of(0)))),
    extension(oids.keyUsage, true, bitString(Uint8Array.of(0b0000_0110), 1)), // keyCertSign, cRLSign
  ];
  if (options.permittedDns) {
    const subtrees = options.permittedDns.map((domain) => sequence(contextPrimitive(2, ascii(domain))));
    extensions.push(extension(oids.nameConstraints, true, sequence(context(0, concat(subtrees)))));
  }
  return certify({ ...options, subject: name, issuer: name, publicKey, privateKey, signer: privateKey, extensions });
}

/** A leaf for servers and clients with a key of its own, signed by `issuer`. */
export function makeLeaf(
  options: Validity & { readonly commonName: string; readonly names: SubjectNames },
  issuer: { readonly commonName: string; readonly privateKey: KeyObject },
): KeyAndCertificate {
  const { privateKey, publicKey } = generateKeyPairSync("ec", { namedCurve: "P-256" });
  const extensions = [
    extension(oids.basicConstraints, true, sequence()),
    extension(oids.keyUsage, true, bitString(Uint8Array.of(0b1000_0000), 7)), // digitalSignature
    extension(oids.extendedKeyUsage, false, sequence(oid(oids.serverAuth), oid(oids.clientAuth))),
    extension(oids.subjectAltName, false, generalNames(options.names)),
  ];
  return certify({
    ...options,
    subject: distinguishedName(options.commonName),
    issuer: distinguishedName(issuer.commonName),
    publicKey,
    privateKey,
    signer: issuer.privateKey,
    extensions,
  });
}

interface Certify extends Validity {
  readonly subject: Der;
  readonly issuer: Der;
  readonly publicKey: KeyObject;
  readonly privateKey: KeyObject;
  readonly signer: KeyObject;
  readonly extensions: readonly Der[];
}

function certify(options: Certify): KeyAndCertificate {
  const { publicKey, privateKey, signer } = options;
  const algorithm = sequence(oid(oids.ecdsaWithSha256));
  const toBeSigned = sequence(
    context(0, integer(Uint8Array.of(2))), // v3
    integer(serialNumber()),
    algorithm,
    options.issuer,
    sequence(time(options.notBeforeMs), time(options.notAfterMs)),
    options.subject,
    spki(publicKey),
    context(
      3,
      sequence(
        ...options.extensions,
        extension(oids.subjectKeyId, false, octetString(keyId(publicKey))),
        extension(oids.authorityKeyId, false, sequence(contextPrimitive(0, keyId(createPublicKey(signer))))),
      ),
    ),
  );
  const signature = sign("sha256", toBeSigned, { key: signer, dsaEncoding: "der" });
  const der = sequence(toBeSigned, algorithm, bitString(signature));
  return {
    privateKey,
    keyPem: privateKey.export({ type: "pkcs8", format: "pem" }),
    certPem: new X509Certificate(der).toString(),
  };
}

/** The private key in `pem`. */
export function readPrivateKey(pem: string): KeyObject {
  return createPrivateKey(pem);
}

function spki(key: KeyObject): Uint8Array {
  return key.export({ type: "spki", format: "der" });
}

/** RFC 7093 §2 method 1, over the whole SubjectPublicKeyInfo. */
function keyId(key: KeyObject): Uint8Array {
  return createHash("sha256").update(spki(key)).digest().subarray(0, 20);
}

/** 127 random bits: positive, never zero (RFC 5280 §4.1.2.2). */
function serialNumber(): Uint8Array {
  const bytes = randomBytes(16);
  bytes[0] = ((bytes[0] ?? 0) & 0x7f) | 0x40;
  return bytes;
}

function distinguishedName(commonName: string): Der {
  const part = (type: string, value: string) => set(sequence(oid(type), utf8String(value)));
  // 64 characters is the upper bound that RFC 5280 gives a common name; clients read the alternative names.
  return sequence(part(oids.organization, "Unkey Deploy"), part(oids.commonName, commonName.slice(0, 64)));
}

function extension(type: string, critical: boolean, value: Der): Der {
  return critical ? sequence(oid(type), booleanTrue, octetString(value)) : sequence(oid(type), octetString(value));
}

function generalNames({ uris = [], dnsNames = [], ips = [] }: SubjectNames): Der {
  const names = [
    ...uris.map((uri) => contextPrimitive(6, ascii(uri))),
    ...dnsNames.map((name) => contextPrimitive(2, ascii(name))),
    ...ips.map((ip) => contextPrimitive(7, ipBytes(ip))),
  ];
  return sequence(...names);
}

/** The 4 or 16 bytes of an address in its text form. */
function ipBytes(ip: string): Uint8Array {
  if (isIPv4(ip)) return Uint8Array.from(ip.split(".").map(Number));
  if (!isIPv6(ip) || ip.includes(".") || ip.includes("%")) throw new RangeError(`"${ip}" is not an IP address`);
  const [head = "", tail] = ip.split("::");
  const groups = (text: string) => (text === "" ? [] : text.split(":"));
  const [left, right] = [groups(head), groups(tail ?? "")];
  const filled = [...left, ...Array.from({ length: 8 - left.length - right.length }, () => "0"), ...right];
  return Uint8Array.from(
    filled.flatMap((group) => [Number.parseInt(group, 16) >> 8, Number.parseInt(group, 16) & 0xff]),
  );
}
