import assert from "node:assert/strict";
import { execFile } from "node:child_process";
import { generateKeyPairSync, type KeyObject } from "node:crypto";
import { mkdtemp, readFile, rm, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { type TestContext, test } from "node:test";
import { promisify } from "node:util";
import * as fc from "fast-check";
import { openEnvelope, signEnvelope } from "./dsse.ts";
import { InvalidAttestation } from "./invalid-attestation.ts";
import { readSigningKey, readVerificationKeys } from "./keys.ts";
import { rootfsBuildType, verifyProvenance } from "./provenance.ts";
import { parseSimpleSigning } from "./simple-signing.ts";
import { isAbout, openStatement, signStatement } from "./statement.ts";
import { makeSigningKey, provenanceOf } from "./testing/index.ts";

const run = promisify(execFile);

async function folder(context: TestContext): Promise<string> {
  const path = await mkdtemp(join(tmpdir(), "attest-"));
  context.after(() => rm(path, { recursive: true, force: true }));
  return path;
}

function publicPem(key: KeyObject): string {
  return key.export({ type: "spki", format: "pem" });
}

const builderId = "spiffe://unkey.test/builderd";
const rootfsDigest = `sha256:${"ab".repeat(32)}`;

test("signatures are those of openssl, in both directions and for each kind of key", async (context) => {
  const dir = await folder(context);
  const message = join(dir, "message");
  await writeFile(message, "what is signed");
  const kinds: readonly [name: string, args: readonly string[], hash: readonly string[]][] = [
    ["p256", ["-algorithm", "EC", "-pkeyopt", "ec_paramgen_curve:P-256"], ["-sha256"]],
    ["p384", ["-algorithm", "EC", "-pkeyopt", "ec_paramgen_curve:P-384"], ["-sha384"]],
    ["p384-sha256", ["-algorithm", "EC", "-pkeyopt", "ec_paramgen_curve:P-384"], ["-sha256"]],
    ["rsa", ["-algorithm", "RSA", "-pkeyopt", "rsa_keygen_bits:2048"], ["-sha256"]],
    ["ed25519", ["-algorithm", "ed25519"], []],
  ];
  for (const [name, args, hash] of kinds) {
    const [key, pem, signature] = [join(dir, `${name}.key`), join(dir, `${name}.pem`), join(dir, `${name}.sig`)];
    await run("openssl", ["genpkey", ...args, "-out", key]);
    await run("openssl", ["pkey", "-in", key, "-pubout", "-out", pem]);
    if (hash.length > 0) await run("openssl", ["dgst", ...hash, "-sign", key, "-out", signature, message]);
    else await run("openssl", ["pkeyutl", "-sign", "-rawin", "-inkey", key, "-in", message, "-out", signature]);
    const [verification] = readVerificationKeys(await readFile(pem, "utf8"));
    const [data, bytes] = [await readFile(message), await readFile(signature)];
    assert.ok(verification.verify(data, bytes), name);
    assert.ok(!verification.verify(Buffer.concat([data, Buffer.from("!")]), bytes), name);
    assert.ok(!verification.verify(data, bytes.subarray(1)), name);
    assert.ok(!verification.verify(data, Buffer.alloc(0)), name);
    assert.ok(!verification.verify(data, Buffer.alloc(4096)), name);
    if (name !== "p256" && name !== "ed25519") continue;
    const ours = readSigningKey(await readFile(key, "utf8"));
    assert.equal(ours.id, verification.id);
    await writeFile(signature, ours.sign(data));
    const verify =
      name === "p256"
        ? ["dgst", "-sha256", "-verify", pem, "-signature", signature, message]
        : ["pkeyutl", "-verify", "-rawin", "-pubin", "-inkey", pem, "-in", message, "-sigfile", signature];
    assert.match((await run("openssl", verify)).stdout, /Verified OK|Verified Successfully/);
  }
});

test("keys that are too weak, of another kind, private, too many or none are refused in words", () => {
  const weak = publicPem(generateKeyPairSync("rsa", { modulusLength: 1024 }).publicKey);
  const other = publicPem(generateKeyPairSync("x25519").publicKey);
  const curve = publicPem(generateKeyPairSync("ec", { namedCurve: "secp256k1" }).publicKey);
  const { privateKeyPem, publicKeyPem } = makeSigningKey();
  assert.throws(() => readVerificationKeys(weak), /RSA of 1024 bits; at least 2048/);
  assert.throws(() => readVerificationKeys(other), /of the kind x25519/);
  assert.throws(() => readVerificationKeys(curve), /curve secp256k1/);
  assert.throws(() => readVerificationKeys(privateKeyPem), /a PRIVATE KEY, not a PUBLIC KEY/);
  assert.throws(() => readVerificationKeys("nothing"), /no PUBLIC KEY/);
  assert.throws(() => readVerificationKeys(publicKeyPem.repeat(65)), /65 keys/);
  assert.throws(() => readVerificationKeys(`${publicKeyPem.slice(0, 40)}\n-----END PUBLIC KEY-----`), /cannot be read/);
  assert.equal(readVerificationKeys(`the old one\n${publicKeyPem}\n${makeSigningKey().publicKeyPem}`).length, 2);
  const secret = "MC4CAQAwBQYDK2VwBCIEIAAAAAAA";
  const broken = `-----BEGIN PRIVATE KEY-----\n${secret}\n-----END PRIVATE KEY-----`;
  assert.throws(
    () => readSigningKey(broken),
    (error) => error instanceof InvalidAttestation && !error.message.includes(secret),
  );
});

test("DSSE's own test vector: the encoding that is signed", () => {
  // protocol.md: PAE("http://example.com/HelloWorld", "hello world")
  let signed: Uint8Array = Buffer.alloc(0);
  const spy = { ...makeSigningKey(), sign: (data: Uint8Array) => Buffer.from((signed = data)) };
  signEnvelope("http://example.com/HelloWorld", Buffer.from("hello world"), spy);
  assert.equal(Buffer.from(signed).toString(), "DSSEv1 29 http://example.com/HelloWorld 11 hello world");
});

test("an envelope opens for the key that signed it, whatever its keyid says, and for no other", () => {
  const [key, other] = [makeSigningKey(), makeSigningKey()];
  const bytes = signEnvelope("text/plain", Buffer.from("hello"), key);
  assert.equal(openEnvelope(bytes, [other.verificationKey, key.verificationKey]).payload.toString(), "hello");
  assert.throws(() => openEnvelope(bytes, [other.verificationKey]), /trusted key/);
  assert.throws(() => openEnvelope(bytes, []), /trusted key/);
  const lying = Buffer.from(bytes.toString().replace(key.id, other.id));
  assert.throws(() => openEnvelope(lying, [other.verificationKey]), /trusted key/);
  assert.equal(openEnvelope(lying, [key.verificationKey]).key.id, key.id);
  // The type is signed too.
  const retyped = Buffer.from(bytes.toString().replace("text/plain", "text/html "));
  assert.throws(() => openEnvelope(retyped, [key.verificationKey]), /trusted key/);
  const urlSafe = JSON.parse(bytes.toString()) as { signatures: { sig: string }[] };
  for (const one of urlSafe.signatures) one.sig = Buffer.from(one.sig, "base64").toString("base64url");
  assert.ok(openEnvelope(Buffer.from(JSON.stringify(urlSafe)), [key.verificationKey]));
});

test("hostile envelopes are refused, never believed and never an exception of another kind", () => {
  const key = makeSigningKey();
  const sig = Buffer.alloc(64).toString("base64");
  const hostile: readonly [string, unknown][] = [
    ["an array", []],
    ["null", null],
    ["no payload", { payloadType: "t", signatures: [{ sig }] }],
    ["a payload of another type", { payloadType: "t", payload: 1, signatures: [{ sig }] }],
    ["no base64", { payloadType: "t", payload: "???", signatures: [{ sig }] }],
    ["no signatures", { payloadType: "t", payload: "", signatures: [] }],
    ["signatures as an object", { payloadType: "t", payload: "", signatures: {} }],
    ["a null signature", { payloadType: "t", payload: "", signatures: [null] }],
    ["a huge signature", { payloadType: "t", payload: "", signatures: [{ sig: "A".repeat(100_000) }] }],
    ["many signatures", { payloadType: "t", payload: "", signatures: Array.from({ length: 17 }, () => ({ sig })) }],
    ["a huge type", { payloadType: "t".repeat(300), payload: "", signatures: [{ sig }] }],
    ["a proto member", JSON.parse('{"__proto__":{"payload":"aGk="},"payloadType":"t","signatures":[]}')],
  ];
  for (const [name, value] of hostile) {
    assert.throws(
      () => openEnvelope(Buffer.from(JSON.stringify(value)), [key.verificationKey]),
      InvalidAttestation,
      name,
    );
  }
  assert.throws(() => openEnvelope(Buffer.alloc(17 * 1024 * 1024), [key.verificationKey]), /at most/);
  assert.throws(() => openEnvelope(Buffer.from("[".repeat(200_000)), [key.verificationKey]), /not JSON/);
  assert.throws(() => openEnvelope(Buffer.from([0x7b, 0xff, 0x7d]), [key.verificationKey]), /not JSON/);
  const real = provenanceOf(rootfsDigest, key);
  fc.assert(
    fc.property(fc.nat({ max: real.length - 1 }), fc.integer({ min: 1, max: 255 }), (at, change) => {
      const bytes = Buffer.from(real);
      bytes[at] = (bytes[at] ?? 0) ^ change;
      try {
        verifyProvenance(bytes, { keys: [key.verificationKey], builderId, rootfsDigest });
      } catch (error) {
        return error instanceof InvalidAttestation;
      }
      // Only what is not signed may change without harm: the hint of the key and the names that nobody reads.
      const { payload } = openEnvelope(bytes, [key.verificationKey]);
      return payload.equals(openEnvelope(real, [key.verificationKey]).payload);
    }),
    { numRuns: 500 },
  );
});

test("a provenance says what SLSA v1 asks for, and nothing that could be a secret", () => {
  const key = makeSigningKey();
  const envelope = provenanceOf(rootfsDigest, key);
  const { payload, payloadType } = openEnvelope(envelope, [key.verificationKey]);
  assert.equal(payloadType, "application/vnd.in-toto+json");
  const statement = JSON.parse(payload.toString()) as Record<string, unknown>;
  const some = { sha256: "11".repeat(32) };
  assert.deepEqual(statement, {
    _type: "https://in-toto.io/Statement/v1",
    subject: [{ name: "rootfs", digest: { sha256: "ab".repeat(32) } }],
    predicateType: "https://slsa.dev/provenance/v1",
    predicate: {
      buildDefinition: {
        buildType: rootfsBuildType,
        externalParameters: {
          image: { reference: "registry.test/app:1" },
          platform: "linux/amd64",
          format: "erofs",
          policy: { digest: some },
        },
        internalParameters: { imageSignatures: [] },
        resolvedDependencies: [
          { name: "manifest", digest: some },
          { name: "config", digest: some, annotations: { sizeBytes: 1 } },
          { name: "layer", digest: some, annotations: { sizeBytes: 1 } },
        ],
      },
      runDetails: {
        builder: { id: builderId, version: { test: "1" } },
        metadata: {
          invocationId: "build_test",
          startedOn: "1970-01-01T00:00:00Z",
          finishedOn: "1970-01-01T00:00:01Z",
        },
        byproducts: [{ name: "sbom", digest: some, annotations: { sizeBytes: 1 }, mediaType: "application/spdx+json" }],
      },
    },
  });
  const read = verifyProvenance(envelope, { keys: [key.verificationKey], builderId, rootfsDigest });
  assert.equal(read.invocationId, "build_test");
  assert.equal(read.layerCount, 1);
  assert.deepEqual(read.image, { reference: "registry.test/app:1" });
});

test("a signed statement of another kind is no provenance", () => {
  const key = makeSigningKey();
  const expected = { keys: [key.verificationKey], builderId, rootfsDigest };
  const subjects = [{ name: "rootfs", digest: { sha256: "ab".repeat(32) } }];
  const signed = (predicateType: string, predicate: Record<string, unknown>) =>
    signStatement({ subjects, predicateType, predicate }, key);
  assert.throws(() => verifyProvenance(signed("https://other", {}), expected), /not SLSA provenance v1/);
  const slsa = "https://slsa.dev/provenance/v1";
  assert.throws(() => verifyProvenance(signed(slsa, {}), expected), /buildDefinition is not an object/);
  assert.throws(
    () => verifyProvenance(signed(slsa, { buildDefinition: { buildType: "x" } }), expected),
    /build type that this platform does not know/,
  );
  const run = { builder: { id: builderId, version: {} }, metadata: { invocationId: "b" }, byproducts: [] };
  const buildDefinition = { buildType: rootfsBuildType, externalParameters: {}, resolvedDependencies: [] };
  assert.throws(() => verifyProvenance(signed(slsa, { buildDefinition, runDetails: run }), expected), /no manifest/);
  const notInToto = signEnvelope("text/plain", Buffer.from("{}"), key);
  assert.throws(() => openStatement(notInToto, expected.keys), /not an in-toto statement/);
  const oldStatement = Buffer.from(
    JSON.stringify({
      _type: "https://in-toto.io/Statement/v0.1",
      subject: subjects,
      predicateType: "p",
      predicate: {},
    }),
  );
  const { statement } = openStatement(signEnvelope("application/vnd.in-toto+json", oldStatement, key), expected.keys);
  assert.ok(isAbout(statement, rootfsDigest));
  assert.ok(!isAbout(statement, "sha256:"));
  assert.ok(!isAbout(statement, "constructor:x"));
});

test("cosign's payload: the digest and repository that were signed", () => {
  const payload = (critical: unknown) => Buffer.from(JSON.stringify({ critical, optional: null }));
  const critical = {
    identity: { "docker-reference": "registry.test/app" },
    image: { "docker-manifest-digest": rootfsDigest },
    type: "cosign container image signature",
  };
  assert.deepEqual(parseSimpleSigning(payload(critical)), {
    manifestDigest: rootfsDigest,
    dockerReference: "registry.test/app",
  });
  assert.throws(() => parseSimpleSigning(payload({ ...critical, type: "atomic container signature" })), /not about/);
  assert.throws(() => parseSimpleSigning(payload({ ...critical, image: {} })), /digest/);
  assert.throws(() => parseSimpleSigning(Buffer.alloc(100_000)), /at most/);
});
