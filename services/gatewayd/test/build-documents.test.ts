import assert from "node:assert/strict";
import { randomBytes } from "node:crypto";
import { after, afterEach, before, test } from "node:test";
import { create } from "@bufbuild/protobuf";
import { ConnectError } from "@connectrpc/connect";
import { AssetState } from "@unkey/api/asset";
import { type Build, BuildImageRequestSchema, BuildSchema, BuildState } from "@unkey/api/builder";
import { ErrorInfoSchema } from "@unkey/api/common";
import { newId, ServiceError } from "@unkey/base";
import { ask, askH2, openH2 } from "./harness/http.ts";
import { type Gateway, type Surroundings, surroundings } from "./harness/platform.ts";
import { rest } from "./harness/rest.ts";

let around: Surroundings;
let gateway: Gateway;
let tenantId: string;
before(async () => {
  around = await surroundings();
  gateway = await around.start();
  ({ tenantId } = await gateway.client().getPlatform({}));
});
after(async () => {
  await gateway?.[Symbol.asyncDispose]();
  await around?.[Symbol.asyncDispose]();
});
afterEach(() => {
  around.assetmanagerd.beforeChunk = () => undefined;
});

const list = Buffer.from(JSON.stringify({ spdxVersion: "SPDX-2.3", filler: randomBytes(150_000).toString("hex") }));
const envelope = Buffer.from('{"payload":"eyJ9","signatures":[]}');

/** A build that is there, with its documents, unless it is said otherwise. */
function built(more: Partial<Build> = {}): Build {
  const { assetmanagerd, builderd } = around;
  const owner = more.tenantId ?? tenantId;
  const build = create(BuildSchema, {
    buildId: newId("build"),
    tenantId: owner,
    state: BuildState.COMPLETED,
    sbomAssetId: assetmanagerd.hold(owner, list),
    provenanceAssetId: assetmanagerd.hold(owner, envelope),
  });
  Object.assign(build, more);
  builderd.builds.set(build.buildId, { build, request: create(BuildImageRequestSchema, {}) });
  return build;
}

for (const protocol of ["connect", "grpc", "grpc-web"] as const) {
  test(`package list and provenance of a build come as they are stored, over ${protocol}`, async () => {
    const client = gateway.client({ protocol });
    const { buildId } = built();
    const chunks = await Array.fromAsync(client.downloadBuildSbom({ buildId }));
    assert.ok(chunks.length > 1);
    assert.ok(Buffer.concat(chunks.map(({ chunk }) => chunk)).equals(list));
    const [only] = await Array.fromAsync(client.downloadBuildProvenance({ buildId }));
    assert.ok(envelope.equals(only?.chunk ?? Buffer.of()));
  });
}

test("over REST they are the body of the answer", async () => {
  const { buildId } = built();
  const sbom = await rest(gateway, "GET", `/v1/builds/${buildId}/sbom`);
  assert.deepEqual([sbom.status, sbom.headers["content-type"]], [200, "application/spdx+json"]);
  assert.equal(sbom.body, list.toString());
  const provenance = await rest(gateway, "GET", `/v1/builds/${buildId}/provenance`);
  assert.equal(provenance.headers["content-type"], "application/vnd.dsse.envelope.v1+json");
  assert.equal(provenance.body, envelope.toString());
});

test("without a key, and with one that may not read deployments, there is nothing", async () => {
  const { buildId } = built();
  const { secret } = await gateway.client().createApiKey({ name: "apps", scopes: ["apps:*"] });
  for (const [key, status] of [
    [undefined, 401],
    [secret, 403],
  ] as const) {
    for (const document of ["sbom", "provenance"]) {
      assert.equal((await rest(gateway, "GET", `/v1/builds/${buildId}/${document}`, { key })).status, status);
    }
  }
});

const refusals: readonly {
  readonly what: string;
  readonly build: () => string;
  readonly reason: string;
  readonly status: number;
  readonly message: RegExp;
  readonly nextStep: RegExp;
}[] = [
  {
    what: "an unknown build",
    build: () => newId("build"),
    reason: "BUILD_NOT_FOUND",
    status: 404,
    message: /no build build_/,
    nextStep: /unkey builds/,
  },
  {
    what: "another tenant's build",
    build: () => built({ tenantId: newId("tenant") }).buildId,
    reason: "BUILD_NOT_FOUND",
    status: 404,
    message: /no build build_/,
    nextStep: /unkey builds/,
  },
  {
    what: "a build that is at work",
    build: () => built({ state: BuildState.EXTRACTING }).buildId,
    reason: "BUILD_NOT_COMPLETED",
    status: 409,
    message: /^build_\w+ is at work, so it has no package list$/,
    nextStep: /unkey builds logs -f build_/,
  },
  {
    what: "a build that failed",
    build: () => built({ state: BuildState.FAILED }).buildId,
    reason: "BUILD_NOT_COMPLETED",
    status: 409,
    message: /it failed, so it has no package list$/,
    nextStep: /unkey builds show build_\w+` says why/,
  },
  {
    what: "a build that was cancelled",
    build: () => built({ state: BuildState.CANCELLED }).buildId,
    reason: "BUILD_NOT_COMPLETED",
    status: 409,
    message: /was cancelled, so/,
    nextStep: /deploy the image again/,
  },
  {
    what: "a build of which the documents were collected",
    build: () => {
      const build = built();
      const held = around.assetmanagerd.held.get(build.sbomAssetId);
      if (held) held.asset.state = AssetState.DELETING;
      return build.buildId;
    },
    reason: "BUILD_DOCUMENT_GONE",
    status: 404,
    message: /the package list of build_\w+ is not there any more/,
    nextStep: /Deploy the image again/,
  },
  {
    what: "a build that names none",
    build: () => built({ sbomAssetId: "" }).buildId,
    reason: "BUILD_DOCUMENT_GONE",
    status: 404,
    message: /is not there any more/,
    nextStep: /Deploy the image again/,
  },
  {
    what: "a document that is too long",
    build: () => {
      const build = built();
      const held = around.assetmanagerd.held.get(build.sbomAssetId);
      if (held) held.asset.sizeBytes = 96n * 2n ** 20n + 1n;
      return build.buildId;
    },
    reason: "ASSET_TOO_LARGE",
    status: 429,
    message: /96 MiB/,
    nextStep: /operator/,
  },
];

for (const { what, build, reason, status, message, nextStep } of refusals) {
  test(`${what} is refused as ${reason}`, async () => {
    const buildId = build();
    const { json, status: actual } = await rest(gateway, "GET", `/v1/builds/${buildId}/sbom`);
    assert.deepEqual([actual, json["reason"]], [status, reason]);
    assert.match(String(json["detail"]), message);
    assert.match(String(json["nextStep"]), nextStep);
    const error = await Array.fromAsync(gateway.client().downloadBuildSbom({ buildId })).then(
      () => undefined,
      (thrown: unknown) => thrown,
    );
    assert.ok(error instanceof ConnectError);
    assert.equal(error.findDetails(ErrorInfoSchema)[0]?.reason, reason);
  });
}

test("an answer that fails in the middle is broken off, and is not a shorter document", async () => {
  around.assetmanagerd.beforeChunk = (from) => {
    if (from > 0) throw new ServiceError("ASSET_CORRUPT", "the stored bytes are wrong");
  };
  const path = `/v1/builds/${built().buildId}/sbom`;
  const port = Number(new URL(gateway.apiOrigin).port);
  const { ca, key } = gateway;
  const headers = { authorization: `Bearer ${key}` };
  await assert.rejects(ask({ port, ca, path, headers }), /aborted/);
  using session = await openH2({ port, ca, host: "localhost" });
  await assert.rejects(askH2(session, { ":path": path, ":authority": `localhost:${port}`, ...headers }), /NGHTTP2_/);
});
