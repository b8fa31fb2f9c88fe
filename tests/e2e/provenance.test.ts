import assert from "node:assert/strict";
import { createHash, createPublicKey, generateKeyPairSync, verify } from "node:crypto";
import { readFile, stat, writeFile } from "node:fs/promises";
import { join } from "node:path";
import { test } from "node:test";
import type { DevPlatform } from "@unkey/testkit";
import { hypervisorPid, skipReason } from "./harness/host.ts";
import type { VmJson } from "./harness/json.ts";
import { sharePlatform } from "./harness/shared-platform.ts";

/** What a platform states about the root filesystems that it makes, and that its hosts hold it to that. */
let platform: DevPlatform;
let vmId: string;
sharePlatform(skipReason, (started) => (platform = started));

test("`unkey build verify` shows every link of a deployed image", { skip: skipReason }, async () => {
  await platform.unkey(["deploy", await platform.helloLayout(), "--app", "hello"]);
  const [vm] = (await platform.json<{ vms: VmJson[] }>(["vms"])).vms;
  vmId = vm?.vmId ?? "";
  const { builds } = await platform.json<{ builds: { buildId: string; provenanceAssetId?: string }[] }>(["builds"]);
  const [build] = builds;
  assert.ok(build);
  const { verified, links } = await platform.json<{
    verified: boolean;
    links: { name: string; holds: boolean; detail: string }[];
  }>(["build", "verify", build.buildId]);
  assert.equal(verified, true, JSON.stringify(links));
  assert.equal(links.length, 9);
  assert.match(links.find(({ name }) => name === "provenance signature")?.detail ?? "", /signed with Ed25519/);
  const { mode } = await stat(join(platform.home, "pki/provenance/signing.key"));
  assert.equal(mode & 0o777, 0o600);
});

test("package list and envelope are handed out as they were stored, and what is signed can be checked without the platform", {
  skip: skipReason,
}, async () => {
  const { builds } = await platform.json<{ builds: { buildId: string }[] }>(["builds"]);
  const buildId = builds[0]?.buildId ?? "";
  const file = join(platform.home, "envelope.json");
  await platform.unkey(["builds", "provenance", buildId, "--output", file]);
  const { payloadType, payload, signatures } = JSON.parse(await readFile(file, "utf8")) as {
    payloadType: string;
    payload: string;
    signatures: { sig: string }[];
  };
  const statement = Buffer.from(payload, "base64");
  const signed = Buffer.concat([
    Buffer.from(`DSSEv1 ${payloadType.length} ${payloadType} ${statement.length} `),
    statement,
  ]);
  const trusted = createPublicKey(await readFile(join(platform.home, "pki/provenance/trusted.pem")));
  assert.ok(verify(null, signed, trusted, Buffer.from(signatures[0]?.sig ?? "", "base64")));
  const { predicate } = JSON.parse(statement.toString()) as {
    predicate: {
      runDetails: {
        metadata: { invocationId: string };
        byproducts: { name: string; digest: { sha256: string } }[];
      };
    };
  };
  const { metadata, byproducts } = predicate.runDetails;
  assert.equal(metadata.invocationId, buildId);
  const list = (await platform.tryUnkey(["builds", "sbom", buildId])).stdout;
  assert.equal((JSON.parse(list) as { spdxVersion: string }).spdxVersion, "SPDX-2.3");
  const digest = createHash("sha256").update(list).digest("hex");
  assert.equal(byproducts.find(({ name }) => name === "sbom")?.digest.sha256, digest);
  const { status, stderr } = await platform.tryUnkey(["builds", "sbom", `${buildId.slice(0, -1)}x`]);
  assert.equal(status, 3);
  assert.match(stderr, /^error: the tenant has no build .*\nnext: {2}Check the id/);
});

test("a host that trusts another key runs what it runs, and boots nothing more of it", {
  skip: skipReason,
}, async () => {
  const trustedFile = join(platform.home, "pki/provenance/trusted.pem");
  const trusted = await readFile(trustedFile, "utf8");
  const stranger = generateKeyPairSync("ed25519").publicKey.export({ type: "spki", format: "pem" });
  await writeFile(trustedFile, stranger);
  const running = hypervisorPid(vmId);
  assert.ok(running);
  await platform.killDaemon("metald");
  assert.equal(hypervisorPid(vmId), running, "a VM never ends because its host's keys changed");
  await platform.unkey(["stop", "hello"]);
  const refused = await platform.tryUnkey(["start", "hello"]);
  assert.notEqual(refused.status, 0);
  assert.match(
    refused.stdout + refused.stderr,
    /PROVENANCE_INVALID|none of the envelope's signatures is by a trusted key/,
  );
  assert.equal(hypervisorPid(vmId), undefined);
  await writeFile(trustedFile, trusted);
  await platform.killDaemon("metald");
  await platform.unkey(["deploy", await platform.helloLayout(), "--app", "hello"]);
  const { url } = await platform.json<{ url: string }>(["apps", "hello"]);
  assert.equal((await platform.get(url)).status, 200);
});
