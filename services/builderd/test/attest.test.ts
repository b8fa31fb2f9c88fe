import assert from "node:assert/strict";
import { createHash } from "node:crypto";
import { mkdtemp, readFile, rm } from "node:fs/promises";
import { tmpdir } from "node:os";
import { basename, dirname, join } from "node:path";
import { Readable } from "node:stream";
import { test } from "node:test";
import { create } from "@bufbuild/protobuf";
import { AssetKind, AssetService, UploadHeaderSchema } from "@unkey/api/asset";
import { type SigningKey, verifyProvenance } from "@unkey/attest";
import { PackageScan } from "@unkey/attest/packages";
import { makeSigningKey } from "@unkey/attest/testing";
import { isServiceError, newId, ServiceError, systemClock } from "@unkey/base";
import { writeErofs } from "@unkey/erofs";
import { inMemoryClient } from "@unkey/rpc";
import { RpcStatementAssets } from "../src/adapters/rpc-statement-assets.ts";
import { SigningAttester } from "../src/attest/signing-attester.ts";
import { BuildVerifier } from "../src/attest/verify-build.ts";
import type { Build, BuildSource } from "../src/domain/build.ts";
import { type BuildPolicy, defaultBuildPolicy, policyDigest } from "../src/domain/policy.ts";
import type { AttestRequest } from "../src/ports.ts";
import { MemoryAssets, type StoredAsset } from "./memory-assets.ts";

const signal = new AbortController().signal;
const secret = "s3cret-that-must-not-show";
const builderId = "spiffe://unkey.test/builderd";
const digestOf = (bytes: Uint8Array) => `sha256:${createHash("sha256").update(bytes).digest("hex")}`;
const artifact = (text: string) => ({ digest: digestOf(Buffer.from(text)), sizeBytes: text.length });

/** The content of a layer with one file of one block, and a root filesystem of that file. */
const partBytes = Buffer.alloc(4096, "part");
const treeImage = await (async () => {
  const directory = await mkdtemp(join(tmpdir(), "attest-"));
  try {
    const metadata = { mode: 0o755, uid: 0, gid: 0, mtimeNs: 0n, xattrs: new Map<string, Buffer>() };
    const file = { kind: "file", metadata, sizeBytes: 4096, place: { device: 0, block: 0 } } as const;
    const root = { kind: "directory", metadata, children: new Map([["file", { node: file }]]) } as const;
    const imagePath = join(directory, "image");
    const devices = [{ digest: digestOf(partBytes).slice("sha256:".length), blockCount: 1 }];
    const content = Readable.from([]);
    await writeErofs({ root, files: [file], devices, content, imagePath, identity: "test", signal });
    return await readFile(imagePath);
  } finally {
    await rm(directory, { recursive: true });
  }
})();

/** A tenant's root filesystem in a store, and what attests and verifies it. */
class Bed {
  readonly assets = new MemoryAssets();
  readonly tenantId = newId("tenant");
  readonly rootfs: StoredAsset;
  policy: BuildPolicy = defaultBuildPolicy;
  key: SigningKey = makeSigningKey();
  trusted = [this.key.verificationKey];

  readonly part: StoredAsset;

  constructor() {
    this.part = this.#stored(AssetKind.LAYER, partBytes, []);
    this.rootfs = this.#stored(AssetKind.ROOTFS, treeImage, [this.part.assetId]);
  }

  #stored(kind: AssetKind, bytes: Buffer, partIds: readonly string[]): StoredAsset {
    const { tenantId } = this;
    const sizeBytes = BigInt(bytes.length);
    const header = create(UploadHeaderSchema, { tenantId, name: "app", kind, digest: digestOf(bytes), sizeBytes });
    const asset = { assetId: newId("asset"), header, bytes, partIds };
    this.assets.stored.push(asset);
    return asset;
  }

  get #deps() {
    const client = inMemoryClient(AssetService, { routes: this.assets.routes, caller: { service: "builderd" } });
    return { assets: new RpcStatementAssets(client, systemClock), keys: this.trusted, builderId };
  }

  get attester(): SigningAttester {
    return new SigningAttester({ ...this.#deps, key: this.key, version: "9.9.9" });
  }

  /** As a build that ended with these assets is verified. */
  async links(build: Build): Promise<Record<string, string>> {
    const { policy } = this;
    const rules = { rulesOf: () => ({ policy, policyDigest: policyDigest(policy), quota: undefined as never }) };
    const links = await new BuildVerifier({ ...this.#deps, rules }).verify(build, signal);
    return Object.fromEntries(links.map(({ name, holds, detail }) => [name, holds ? "holds" : detail]));
  }

  /** Every place of a build where a secret stands is filled with one. */
  build(source: BuildSource = { kind: "reference", reference: "registry.test/app:1" }): Build {
    return {
      buildId: newId("build"),
      tenantId: this.tenantId,
      idempotencyKey: `key-${secret}`,
      request: { source, plainHttp: false, format: "erofs", argvOverride: ["app", `--token=${secret}`] },
      imageName: "registry.test/app:1",
      withCredentials: true,
      state: "registering",
      attempts: 1,
      platform: "linux/amd64",
      imageDigest: artifact("manifest").digest,
      policyDigest: policyDigest(this.policy),
      cacheHit: false,
      rootfsAssetId: "",
      rootfsBytes: 0,
      provenanceAssetId: "",
      sbomAssetId: "",
      process: {
        argv: [`--token=${secret}`],
        env: [["TOKEN", secret]],
        workingDir: "/",
        uid: 0,
        gid: 0,
        groups: [],
        stopSignal: "SIGTERM",
        exposedPorts: [],
      },
      failure: undefined,
      steps: [],
      createdAtMs: 1_700_000_000_000,
      aliveAtMs: 0,
    };
  }

  request(build: Build): AttestRequest {
    const scan = new PackageScan();
    const status = Buffer.from("Package: a\nVersion: 1\nArchitecture: all\n");
    const files = new Map([["var/lib/dpkg/status", status]]);
    for (const [path, bytes] of files) assert.ok(scan.wants(dirname(path), basename(path), bytes.length));
    return {
      build,
      image: {
        manifestDigest: build.imageDigest,
        config: artifact("config"),
        layers: [artifact("layer 1"), artifact("layer 2")],
      },
      signatures: [],
      format: "erofs",
      policyDigest: build.policyDigest,
      rootfs: {
        assetId: this.rootfs.assetId,
        digest: this.rootfs.header.digest,
        sizeBytes: this.rootfs.bytes.length,
      },
      packages: scan.list(files),
      startedAtMs: 1_700_000_001_000,
      finishedAtMs: Date.now(),
    };
  }

  async completed(build = this.build()): Promise<Build> {
    const made = await this.attester.attest(this.request(build), signal);
    return { ...build, ...made, state: "completed", rootfsAssetId: this.rootfs.assetId };
  }

  stored(kind: AssetKind): StoredAsset[] {
    return this.assets.stored.filter(({ header }) => header.kind === kind);
  }
}

const whole = {
  "root filesystem": "holds",
  "root filesystem bytes": "holds",
  "root filesystem parts": "holds",
  "provenance signature": "holds",
  "provenance subject": "holds",
  image: "holds",
  policy: "holds",
  "image signatures": "holds",
  "package list": "holds",
};

test("provenance and package list are attached to the root filesystem, agree, and carry no secret", async () => {
  const bed = new Bed();
  const build = await bed.completed();
  const [provenance, ...others] = bed.stored(AssetKind.PROVENANCE);
  const [sbom] = bed.stored(AssetKind.SBOM);
  assert.ok(provenance !== undefined && sbom !== undefined && others.length === 0);
  for (const { header } of [provenance, sbom]) {
    assert.equal(header.attachedTo, bed.rootfs.assetId);
    assert.equal(header.tenantId, bed.tenantId);
  }
  const read = verifyProvenance(provenance.bytes, {
    keys: [bed.key.verificationKey],
    builderId,
    rootfsDigest: bed.rootfs.header.digest,
  });
  assert.equal(read.sbomDigest, sbom.header.digest);
  assert.equal(read.invocationId, build.buildId);
  assert.deepEqual(read.image, { reference: "registry.test/app:1" });
  assert.deepEqual(read.builderVersion, { "unkey-builderd": "9.9.9", node: process.versions.node });
  const { payload } = JSON.parse(provenance.bytes.toString()) as { payload: string };
  for (const text of [provenance.bytes.toString(), Buffer.from(payload, "base64").toString(), sbom.bytes.toString()]) {
    assert.ok(!text.includes(secret));
    assert.ok(!text.includes("TOKEN"));
  }
  assert.deepEqual(await bed.links(build), whole);
});

test("uploads and pushed images are named as what they are", async () => {
  const digest = artifact("manifest").digest;
  const cases: readonly [BuildSource, object][] = [
    [{ kind: "upload", uploadId: newId("upload") }, {}],
    [{ kind: "pushed", repository: "my-app", digest }, { pushed: `my-app@${digest}` }],
  ];
  for (const [source, image] of cases) {
    const bed = new Bed();
    await bed.completed(bed.build(source));
    const [provenance] = bed.stored(AssetKind.PROVENANCE);
    assert.ok(provenance !== undefined);
    const expected = source.kind === "upload" ? { upload: source.uploadId } : image;
    const keys = [bed.key.verificationKey];
    const read = verifyProvenance(provenance.bytes, { keys, builderId, rootfsDigest: bed.rootfs.header.digest });
    assert.deepEqual(read.image, expected);
  }
});

test("an attempt that died before either asset, between them or after them is continued, and nothing is stored twice", async () => {
  for (const survives of [0, 1, 2]) {
    const bed = new Bed();
    const build = bed.build();
    if (survives === 2) await bed.attester.attest(bed.request(build), signal);
    else {
      // The first upload that is not to be survived fails as the process would.
      bed.assets.beforeUpload = async () => {
        if (bed.assets.stored.length > 1 + survives) throw new ServiceError("INTERNAL", "killed");
      };
      await assert.rejects(bed.attester.attest(bed.request(build), signal), /killed/);
      bed.assets.beforeUpload = async () => {};
    }
    assert.equal(bed.assets.stored.length, 2 + survives);
    const again = await bed.completed(build);
    assert.equal(bed.stored(AssetKind.SBOM).length, 1);
    assert.equal(bed.stored(AssetKind.PROVENANCE).length, 1);
    assert.deepEqual(await bed.links(again), whole);
  }
});

test("assetmanagerd that is away for a moment is asked again", async () => {
  const bed = new Bed();
  bed.assets.failures.push(new ServiceError("DEPENDENCY_UNAVAILABLE", "starting"));
  assert.deepEqual(await bed.links(await bed.completed()), whole);
});

test("another policy, or a key that is trusted no more, is stated anew", async () => {
  const bed = new Bed();
  const first = await bed.completed();
  bed.policy = { ...defaultBuildPolicy, setuid: "strip" };
  const second = await bed.completed();
  assert.notEqual(second.provenanceAssetId, first.provenanceAssetId);
  bed.key = makeSigningKey();
  bed.trusted = [bed.key.verificationKey, ...bed.trusted];
  assert.equal((await bed.completed(bed.build())).provenanceAssetId, second.provenanceAssetId, "still believed");
  bed.trusted = [bed.key.verificationKey];
  const third = await bed.completed();
  assert.notEqual(third.provenanceAssetId, second.provenanceAssetId);
  assert.deepEqual(await bed.links(third), whole);
});

test("a cached result holds only while all three assets are there and the key is trusted", async () => {
  const bed = new Bed();
  const build = await bed.completed();
  const result = { ...build, rootfsAssetId: bed.rootfs.assetId, signatures: [] };
  const holds = () => bed.attester.holds(bed.tenantId, result, signal);
  assert.equal(await holds(), true);
  assert.equal(await bed.attester.holds(bed.tenantId, { ...result, provenanceAssetId: "" }, signal), false);
  assert.equal(await bed.attester.holds(newId("tenant"), result, signal), false);
  const found = [{ digest: build.imageDigest, keyId: "SHA256:00", predicateType: "" }];
  assert.equal(await bed.attester.holds(bed.tenantId, { ...result, signatures: found }, signal), false);
  for (const kind of [AssetKind.SBOM, AssetKind.PROVENANCE, AssetKind.ROOTFS]) {
    const [asset] = bed.stored(kind);
    assert.ok(asset !== undefined);
    const at = bed.assets.stored.indexOf(asset);
    bed.assets.stored.splice(at, 1);
    assert.equal(await holds(), false);
    bed.assets.stored.splice(at, 0, asset);
  }
  bed.trusted = [makeSigningKey().verificationKey];
  assert.equal(await holds(), false);
});

test("each link breaks by itself, and says how", async () => {
  const bed = new Bed();
  const build = await bed.completed();
  const replaceWith = (changed: StoredAsset): (() => void) => {
    const at = bed.assets.stored.findIndex(({ assetId }) => assetId === changed.assetId);
    const [before = assert.fail()] = bed.assets.stored.splice(at, 1, changed);
    return () => void bed.assets.stored.splice(at, 1, before);
  };
  const change = (asset: StoredAsset | undefined, bytes: Buffer) => replaceWith({ ...(asset ?? assert.fail()), bytes });
  const remove = (kind: AssetKind): (() => void) => {
    const before = [...bed.assets.stored];
    bed.assets.stored.splice(0, Infinity, ...before.filter(({ header }) => header.kind !== kind));
    return () => void bed.assets.stored.splice(0, Infinity, ...before);
  };
  const broken = async (links: Promise<Record<string, string>>) =>
    Object.fromEntries(Object.entries(await links).filter(([, detail]) => detail !== "holds"));

  let restore = change(bed.rootfs, Buffer.from("another"));
  let found = await broken(bed.links(build));
  assert.deepEqual(Object.keys(found), ["root filesystem bytes", "root filesystem parts"]);
  assert.match(found["root filesystem bytes"] ?? "", /the stored bytes have the digest sha256:/);
  assert.match(found["root filesystem parts"] ?? "", /^not checked: the root filesystem's bytes/);
  restore();

  restore = change(bed.part, Buffer.alloc(4096, "other"));
  found = await broken(bed.links(build));
  assert.deepEqual(Object.keys(found), ["root filesystem parts"]);
  assert.match(found["root filesystem parts"] ?? "", /the bytes of asset_\w+ have the digest sha256:/);
  restore();

  restore = replaceWith({ ...bed.rootfs, partIds: [] });
  found = await broken(bed.links(build));
  assert.match(found["root filesystem parts"] ?? "", /^it names sha256:\w+, and is stored with none$/);
  restore();

  restore = change(bed.stored(AssetKind.SBOM)[0], Buffer.from("{}"));
  found = await broken(bed.links(build));
  assert.match(found["package list"] ?? "", /the provenance names sha256:\w+, stored is sha256:/);
  assert.equal(Object.keys(found).length, 1);
  restore();

  restore = remove(AssetKind.PROVENANCE);
  found = await broken(bed.links(build));
  assert.match(found["provenance signature"] ?? "", /no provenance asset_\w+ is attached/);
  assert.equal(found["image"], "not checked: there is no provenance that can be trusted");
  assert.equal(Object.keys(found).length, 6);
  restore();

  restore = remove(AssetKind.ROOTFS);
  found = await broken(bed.links(build));
  assert.match(found["root filesystem"] ?? "", /is not there any more/);
  restore();

  found = await broken(bed.links({ ...build, imageDigest: artifact("another").digest }));
  assert.deepEqual(Object.keys(found), ["image"]);
  found = await broken(bed.links({ ...build, policyDigest: artifact("another").digest }));
  assert.deepEqual(Object.keys(found), ["policy"]);

  const known = bed.trusted;
  bed.trusted = [makeSigningKey().verificationKey];
  found = await broken(bed.links(build));
  assert.match(found["provenance signature"] ?? "", /none of the envelope's signatures is by a trusted key/);
  bed.trusted = known;

  const signer = makeSigningKey();
  const rule = { images: ["**"], keys: [signer.publicKeyPem], signature: true, attestations: [] };
  bed.policy = { ...defaultBuildPolicy, signatures: [rule] };
  found = await broken(bed.links(build));
  assert.deepEqual(found, {
    "image signatures": "today's policy asks for a signature that the provenance does not record",
  });
  const signed = bed.build();
  const recorded = [{ digest: signed.imageDigest, keyId: signer.id, predicateType: "" }];
  const made = await bed.attester.attest({ ...bed.request(signed), signatures: recorded }, signal);
  const completed: Build = { ...signed, ...made, state: "completed", rootfsAssetId: bed.rootfs.assetId };
  assert.deepEqual(await bed.links(completed), whole);
});

test("a build that has not completed has nothing to verify", async () => {
  const bed = new Bed();
  await assert.rejects(
    bed.links(bed.build()),
    (error) => isServiceError(error) && error.reason === "BUILD_NOT_COMPLETED",
  );
});
