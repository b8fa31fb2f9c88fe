import assert from "node:assert/strict";
import { writeFile } from "node:fs/promises";
import { join } from "node:path";
import { type TestContext, test } from "node:test";
import { AssetKind } from "@unkey/api/asset";
import { BuildState } from "@unkey/api/builder";
import { newId } from "@unkey/base";
import { assembleImage } from "@unkey/oci";
import { needsRegistry, pushLayout, startTestRegistry, testLogin } from "@unkey/oci/testing";
import { build, fromRegistry, startBuilder, temporary } from "./harness.ts";
import { pushSigned, Signer, signaturePayload, signatureTag, simpleSigning } from "./image-signer.ts";

const skip = needsRegistry;
const secrets = ["env-s3cret", "argv-s3cret", "history-s3cret", testLogin.password];

async function image(context: TestContext): Promise<string> {
  const layout = join(await temporary(context), "layout");
  const status = "Package: base-files\nStatus: install ok installed\nVersion: 12.4\nArchitecture: amd64\n";
  await assembleImage({
    directory: layout,
    files: [
      { path: "etc", directory: true },
      { path: "etc/os-release", content: "ID=debian\nVERSION_ID=12\n" },
      { path: "etc/secret", content: "env-s3cret" },
      { path: "var", directory: true },
      { path: "var/lib", directory: true },
      { path: "var/lib/dpkg", directory: true },
      { path: "var/lib/dpkg/status", content: status },
      { path: "app", directory: true },
      { path: "app/node_modules", directory: true },
      { path: "app/node_modules/left", directory: true },
      { path: "app/node_modules/left/package.json", content: '{"name":"left","version":"1.3.0"}' },
    ],
    config: { Cmd: ["/hello"], Env: ["TOKEN=env-s3cret"], Labels: { built: "with --build-arg=history-s3cret" } },
  });
  return layout;
}

test("a build leaves signed provenance and its packages, verifies link by link, and neither holds a secret", {
  skip,
}, async (context) => {
  await using registry = await startTestRegistry({ login: true });
  const place = { host: registry.host, repository: "team/app", tag: "v1" };
  await pushLayout({ layout: await image(context), ...place, login: testLogin });
  const builder = await startBuilder(context);
  const tenantId = newId("tenant");
  const request = { ...fromRegistry(`${registry.host}/team/app:v1`), credentials: testLogin };
  const made = await build(builder, tenantId, { ...request, argvOverride: ["/hello", "--token=argv-s3cret"] });
  assert.equal(made.state, BuildState.COMPLETED, JSON.stringify(made.failure));

  const of = (kind: AssetKind) => builder.assets.stored.filter(({ header }) => header.kind === kind);
  const [[provenance], [sbom]] = [of(AssetKind.PROVENANCE), of(AssetKind.SBOM)];
  assert.ok(provenance !== undefined && sbom !== undefined);
  assert.equal(provenance.assetId, made.provenanceAssetId);
  assert.equal(sbom.assetId, made.sbomAssetId);
  assert.equal(provenance.header.attachedTo, made.rootfsAssetId);
  const envelope = JSON.parse(provenance.bytes.toString()) as { payload: string };
  const statement = Buffer.from(envelope.payload, "base64").toString();
  const document = JSON.parse(sbom.bytes.toString()) as {
    packages: { name: string; externalRefs?: { referenceLocator: string }[] }[];
  };
  assert.deepEqual(
    document.packages.map(({ externalRefs }) => externalRefs?.[0]?.referenceLocator),
    [undefined, "pkg:deb/debian/base-files@12.4?arch=amd64&distro=debian-12", "pkg:npm/left@1.3.0"],
  );
  for (const secret of secrets) {
    assert.ok(!statement.includes(secret), `the provenance holds ${secret}`);
    assert.ok(!sbom.bytes.includes(secret), `the package list holds ${secret}`);
  }

  const { verified, links } = await builder.as(tenantId).verifyBuild({ tenantId, buildId: made.buildId });
  assert.deepEqual(
    links.filter(({ holds }) => !holds),
    [],
  );
  assert.equal(verified, true);
  assert.equal(links.length, 9);
  await assert.rejects(builder.as(newId("tenant")).verifyBuild({ tenantId: newId("tenant"), buildId: made.buildId }));

  const again = await build(builder, tenantId, request);
  assert.equal(again.cacheHit, true);
  assert.equal(again.provenanceAssetId, made.provenanceAssetId);
  const cached = await builder.as(tenantId).verifyBuild({ tenantId, buildId: again.buildId });
  assert.equal(cached.verified, true);
});

test("an image without the signature that the policy asks for is not built, nor found in the cache under another name", {
  skip,
}, async (context) => {
  await using registry = await startTestRegistry();
  const layout = await image(context);
  const places = ["open/app", "guarded/app"].map((repository) => ({ host: registry.host, repository, tag: "v1" }));
  const digests = await Promise.all(places.map((place) => pushLayout({ layout, ...place })));
  const digest = digests[0]?.digest ?? "";
  const signer = await Signer.make(context);
  const policyFile = join(await temporary(context), "policy.json");
  const rule = { images: [`${registry.host}/guarded/**`], keys: [signer.pem], signature: true };
  await writeFile(policyFile, JSON.stringify({ default: { signatures: [rule] } }));
  const builder = await startBuilder(context, { policyFile });
  const tenantId = newId("tenant");
  const open = await build(builder, tenantId, fromRegistry(`${registry.host}/open/app:v1`));
  assert.equal(open.state, BuildState.COMPLETED, JSON.stringify(open.failure));

  const guarded = fromRegistry(`${registry.host}/guarded/app:v1`);
  const refused = await build(builder, tenantId, guarded);
  assert.equal(refused.failure?.reason, "IMAGE_SIGNATURE_MISSING");
  assert.equal(refused.imageDigest, open.imageDigest, "the very image that is in the cache");

  const bytes = signaturePayload(digest, `${registry.host}/guarded/app`);
  const place = { host: registry.host, repository: "guarded/app", tag: signatureTag(digest) };
  await pushSigned(place, simpleSigning, [{ bytes, signature: await signer.sign(bytes) }]);
  const taken = await build(builder, tenantId, guarded);
  assert.equal(taken.state, BuildState.COMPLETED, JSON.stringify(taken.failure));
  assert.equal(taken.rootfsAssetId, open.rootfsAssetId, "the same bytes");
  assert.notEqual(taken.provenanceAssetId, open.provenanceAssetId, "with a provenance that records the signature");
  const { links } = await builder.as(tenantId).verifyBuild({ tenantId, buildId: taken.buildId });
  const link = links.find(({ name }) => name === "image signatures");
  assert.deepEqual([link?.holds, link?.detail], [true, `${digest} by ${await signer.keyId()}`]);
  assert.equal((await build(builder, tenantId, guarded)).cacheHit, true);
});
