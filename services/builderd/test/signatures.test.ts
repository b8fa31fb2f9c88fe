import assert from "node:assert/strict";
import { randomBytes } from "node:crypto";
import { join } from "node:path";
import { type TestContext, test } from "node:test";
import { isServiceError } from "@unkey/base";
import {
  assembleImage,
  hostPlatform,
  LayoutImage,
  parseImageReference,
  RegistryClient,
  resolveManifest,
} from "@unkey/oci";
import { needsRegistry, pushLayout, pushManifest, startTestRegistry, type TestRegistry } from "@unkey/oci/testing";
import { checkSignatures } from "../src/attest/check-signatures.ts";
import type { BuildSource } from "../src/domain/build.ts";
import { defaultBuildPolicy, type SignatureRule } from "../src/domain/policy.ts";
import { temporary } from "./harness.ts";
import {
  digestOf,
  json,
  manifestType,
  pushSigned,
  Signer,
  signaturePayload,
  signatureTag,
  simpleSigning,
} from "./image-signer.ts";

const signal = new AbortController().signal;
const slsa = "https://slsa.dev/provenance/v1";

/** A registry with one image in it. */
class Bench {
  readonly registry: TestRegistry;
  readonly digest: string;
  readonly repository = "team/app";
  readonly #client = new RegistryClient();

  private constructor(registry: TestRegistry, digest: string) {
    this.registry = registry;
    this.digest = digest;
  }

  static async open(context: TestContext): Promise<Bench> {
    const registry = await startTestRegistry();
    const layout = join(await temporary(context), "layout");
    await assembleImage({ directory: layout, files: [], config: { Cmd: ["/hello"] } });
    const pushed = await pushLayout({ layout, host: registry.host, repository: "team/app", tag: "v1" });
    const bench = new Bench(registry, pushed.digest);
    context.after(async () => {
      await bench.#client[Symbol.asyncDispose]();
      await registry[Symbol.asyncDispose]();
    });
    return bench;
  }

  get name(): string {
    return `${this.registry.host}/${this.repository}`;
  }

  payload(overrides: { digest?: string; reference?: string } = {}): Buffer {
    return signaturePayload(overrides.digest ?? this.digest, overrides.reference ?? this.name);
  }

  /** An in-toto statement in a DSSE envelope, put together by hand. */
  async envelope(signer: Signer, predicateType: string, digest = this.digest): Promise<Buffer> {
    const type = "application/vnd.in-toto+json";
    const [, hex = ""] = digest.split(":");
    const subject = [{ name: this.name, digest: { sha256: hex } }];
    const payload = json({ _type: "https://in-toto.io/Statement/v0.1", subject, predicateType, predicate: {} });
    const signed = Buffer.concat([Buffer.from(`DSSEv1 ${type.length} ${type} ${payload.length} `), payload]);
    const signatures = [{ keyid: "", sig: await signer.sign(signed) }];
    return json({ payloadType: type, payload: payload.toString("base64"), signatures });
  }

  push(tag: string, mediaType: string, blobs: Parameters<typeof pushSigned>[2]): Promise<void> {
    return pushSigned({ host: this.registry.host, repository: this.repository, tag }, mediaType, blobs);
  }

  async pushSignatures(
    ...signed: readonly { readonly bytes: Uint8Array; readonly signature: string }[]
  ): Promise<void> {
    await this.push(signatureTag(this.digest), simpleSigning, signed);
  }

  async pushAttestations(...envelopes: readonly Buffer[]): Promise<void> {
    const blobs = envelopes.map((bytes) => ({ bytes }));
    await this.push(`${this.digest.replace(":", "-")}.att`, "application/vnd.dsse.envelope.v1+json", blobs);
  }

  async check(rule: Partial<SignatureRule> & Pick<SignatureRule, "keys">, tag = "v1") {
    const reference = `${this.name}:${tag}`;
    const image = this.#client.image(parseImageReference(reference));
    const source: BuildSource = { kind: "reference", reference };
    const { digest } = await resolveManifest(image, hostPlatform(), signal);
    const rules = [{ images: ["**"], signature: true, attestations: [], ...rule }];
    return checkSignatures(
      { image, source, manifestDigest: digest, policy: { ...defaultBuildPolicy, signatures: rules } },
      signal,
    );
  }
}

async function refused(checking: Promise<unknown>, reason: string, message: RegExp): Promise<void> {
  await assert.rejects(checking, (error) => {
    assert.ok(isServiceError(error), String(error));
    assert.equal(error.reason, reason);
    assert.match(error.message, message);
    return true;
  });
}

test("what cosign's rules call signed is taken, with each kind of key, and the key that signed is told", {
  skip: needsRegistry,
}, async (context) => {
  const bench = await Bench.open(context);
  const kinds = [
    [],
    ["-algorithm", "EC", "-pkeyopt", "ec_paramgen_curve:P-384"],
    ["-algorithm", "RSA", "-pkeyopt", "rsa_keygen_bits:2048"],
    ["-algorithm", "ed25519"],
  ];
  const stranger = await Signer.make(context);
  for (const kind of kinds) {
    const signer = await Signer.make(context, ...kind);
    const bytes = bench.payload();
    const other = { bytes, signature: await stranger.sign(bytes) };
    await bench.pushSignatures(other, { bytes, signature: await signer.sign(bytes) });
    const found = await bench.check({ keys: [signer.pem] });
    assert.deepEqual(found, [{ digest: bench.digest, keyId: await signer.keyId(), predicateType: "" }]);
  }
});

test("no signature, a stranger's, one that was changed, one of another image or repository: each is refused in its own words", {
  skip: needsRegistry,
}, async (context) => {
  const bench = await Bench.open(context);
  const [signer, stranger] = [await Signer.make(context), await Signer.make(context)];
  const keys = [signer.pem];
  await refused(
    bench.check({ keys }),
    "IMAGE_SIGNATURE_MISSING",
    /asks for a signature of 127\.0\.0\.1:\d+\/team\/app:v1; there is none/,
  );
  const cases: readonly [bytes: Buffer, signature: string, message: RegExp][] = [
    [bench.payload(), await stranger.sign(bench.payload()), /it is not by a key that the policy lists/],
    [Buffer.concat([bench.payload(), Buffer.from(" ")]), await signer.sign(bench.payload()), /not by a key/],
    [bench.payload(), "no base64!", /no signature in base64/],
    [bench.payload(), "", /not by a key/],
  ];
  for (const [bytes, signature, message] of cases) {
    await bench.pushSignatures({ bytes, signature });
    await refused(bench.check({ keys }), "IMAGE_SIGNATURE_INVALID", message);
  }
  const wrong: readonly [Buffer, RegExp][] = [
    [bench.payload({ digest: `sha256:${"00".repeat(32)}` }), /it is of "sha256:0{64}", another image/],
    [bench.payload({ reference: `${bench.registry.host}/team/other` }), /it is for the repository ".*\/team\/other"/],
    [bench.payload({ reference: "not a reference" }), /it is for the repository "not a reference"/],
    [json({ critical: {} }), /not about a container image/],
  ];
  for (const [bytes, message] of wrong) {
    await bench.pushSignatures({ bytes, signature: await signer.sign(bytes) });
    await refused(bench.check({ keys }), "IMAGE_SIGNATURE_INVALID", message);
  }
  const unnamed = bench.payload({ reference: "" });
  await bench.pushSignatures({ bytes: unnamed, signature: await signer.sign(unnamed) });
  assert.equal((await bench.check({ keys })).length, 1, "a signature may leave the repository out");
});

test("more signatures than are looked at, and one too long to be read, are refused", {
  skip: needsRegistry,
}, async (context) => {
  const bench = await Bench.open(context);
  const signer = await Signer.make(context);
  const bytes = bench.payload();
  const signature = await signer.sign(bytes);
  await bench.pushSignatures(...Array.from({ length: 33 }, () => ({ bytes, signature })));
  await refused(bench.check({ keys: [signer.pem] }), "IMAGE_SIGNATURE_INVALID", /holds 33 signatures; at most 32/);
  const long = randomBytes(64 * 1024 + 1);
  await bench.pushSignatures({ bytes: long, signature: await signer.sign(long) });
  await refused(
    bench.check({ keys: [signer.pem] }),
    "IMAGE_SIGNATURE_INVALID",
    /has 65537 bytes; at most 65536 are read/,
  );
});

test("attestations: of the type that is asked for, about this image, by a listed key", {
  skip: needsRegistry,
}, async (context) => {
  const bench = await Bench.open(context);
  const [signer, stranger] = [await Signer.make(context), await Signer.make(context)];
  const rule = { keys: [signer.pem], signature: false, attestations: [slsa] };
  await refused(bench.check(rule), "IMAGE_SIGNATURE_MISSING", /attestation of the type https:\/\/slsa\.dev/);
  await bench.pushAttestations(await bench.envelope(stranger, slsa));
  await refused(bench.check(rule), "IMAGE_SIGNATURE_INVALID", /none of the envelope's signatures is by a trusted key/);
  await bench.pushAttestations(await bench.envelope(signer, "https://spdx.dev/Document"));
  await refused(bench.check(rule), "IMAGE_SIGNATURE_INVALID", /it is of the type "https:\/\/spdx\.dev\/Document"/);
  await bench.pushAttestations(await bench.envelope(signer, slsa, `sha256:${"00".repeat(32)}`));
  await refused(bench.check(rule), "IMAGE_SIGNATURE_INVALID", /about another image/);
  await bench.pushAttestations(json({ rubbish: true }), await bench.envelope(signer, slsa));
  assert.deepEqual(await bench.check(rule), [
    { digest: bench.digest, keyId: await signer.keyId(), predicateType: slsa },
  ]);
  // One of the two things that are asked for is not enough.
  await refused(bench.check({ ...rule, signature: true }), "IMAGE_SIGNATURE_MISSING", /asks for a signature/);
});

test("of an image for several platforms the index is signed, and speaks for the manifests that it lists", {
  skip: needsRegistry,
}, async (context) => {
  const bench = await Bench.open(context);
  const signer = await Signer.make(context);
  const { os, architecture } = hostPlatform();
  const size = (
    await fetch(`http://${bench.name.replace("/", "/v2/")}/manifests/v1`, { headers: { accept: manifestType } }).then(
      (r) => r.arrayBuffer(),
    )
  ).byteLength;
  const index = json({
    schemaVersion: 2,
    mediaType: "application/vnd.oci.image.index.v1+json",
    manifests: [{ mediaType: manifestType, digest: bench.digest, size, platform: { os, architecture } }],
  });
  const place = { host: bench.registry.host, repository: bench.repository };
  await pushManifest({ ...place, tag: "multi" }, "application/vnd.oci.image.index.v1+json", index);
  const indexDigest = digestOf(index);
  const bytes = bench.payload({ digest: indexDigest });
  await bench.push(signatureTag(indexDigest), simpleSigning, [{ bytes, signature: await signer.sign(bytes) }]);
  const [found] = await bench.check({ keys: [signer.pem] }, "multi");
  assert.equal(found?.digest, indexDigest);
  await refused(bench.check({ keys: [signer.pem] }, "v1"), "IMAGE_SIGNATURE_MISSING", /there is none/);
});

test("every rule that matches must hold, one that does not asks for nothing, and an upload can satisfy none", {
  skip: needsRegistry,
}, async (context) => {
  const bench = await Bench.open(context);
  const [first, second] = [await Signer.make(context), await Signer.make(context)];
  assert.deepEqual(await bench.check({ images: ["docker.io/**"], keys: [first.pem] }), []);
  const bytes = bench.payload();
  await bench.pushSignatures({ bytes, signature: await second.sign(bytes) });
  assert.equal((await bench.check({ keys: [first.pem, second.pem] })).length, 1, "one of a rule's keys is enough");
  const layout = join(await temporary(context), "layout");
  const { manifestDigest } = await assembleImage({ directory: layout, files: [], config: { Cmd: ["/x"] } });
  const rule = { images: ["**"], signature: true, attestations: [], keys: [first.pem] };
  const policy = { ...defaultBuildPolicy, signatures: [rule] };
  const source: BuildSource = { kind: "upload", uploadId: "upload_0" as never };
  const image = new LayoutImage(layout, "the upload");
  await refused(
    checkSignatures({ image, source, manifestDigest, policy }, signal),
    "IMAGE_SIGNATURE_MISSING",
    /asks for a signature of the upload; there is none/,
  );
});
