import assert from "node:assert/strict";
import { generateKeyPairSync } from "node:crypto";
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
  assert.equal(links.length, 8);
  assert.match(links.find(({ name }) => name === "provenance signature")?.detail ?? "", /signed with Ed25519/);
  const { mode } = await stat(join(platform.home, "pki/provenance/signing.key"));
  assert.equal(mode & 0o777, 0o600);
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
