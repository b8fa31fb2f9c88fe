import assert from "node:assert/strict";
import { existsSync } from "node:fs";
import { readdir, readFile, stat, writeFile } from "node:fs/promises";
import { join } from "node:path";
import { test } from "node:test";
import { makeSigningKey, provenanceOf } from "@unkey/attest/testing";
import { isServiceError, newId, ServiceError } from "@unkey/base";
import { MetalBed, nothing } from "./support/metal-bed.ts";

/** What is attached to the root filesystem → how the creation is refused. */
const refusals: readonly {
  readonly name: string;
  readonly attached: (bed: MetalBed, digest: string) => readonly Uint8Array[];
  readonly reason: string;
  readonly message: RegExp;
}[] = [
  { name: "nothing", attached: () => [], reason: "PROVENANCE_MISSING", message: /has no provenance attached/ },
  {
    name: "a statement by a stranger's key",
    attached: (_, digest) => [provenanceOf(digest, makeSigningKey())],
    reason: "PROVENANCE_INVALID",
    message: /none of the envelope's signatures is by a trusted key/,
  },
  {
    name: "a statement about another root filesystem",
    attached: (bed) => [provenanceOf(`sha256:${"00".repeat(32)}`, bed.assets.signer)],
    reason: "PROVENANCE_INVALID",
    message: /is about something else than sha256:/,
  },
  {
    name: "a statement that names another builder",
    attached: (bed, digest) => [provenanceOf(digest, bed.assets.signer, { builderId: "spiffe://elsewhere/builderd" })],
    reason: "PROVENANCE_INVALID",
    message: /names the builder "spiffe:\/\/elsewhere\/builderd", not spiffe:\/\/unkey.test\/builderd/,
  },
  {
    name: "a signed statement whose payload was changed",
    attached: (bed, digest) => {
      const envelope = JSON.parse(provenanceOf(digest, bed.assets.signer).toString()) as { payload: string };
      const payload = Buffer.from(envelope.payload, "base64").toString().replace("erofs", "ext4 ");
      return [Buffer.from(JSON.stringify({ ...envelope, payload: Buffer.from(payload).toString("base64") }))];
    },
    reason: "PROVENANCE_INVALID",
    message: /trusted key/,
  },
  {
    name: "rubbish",
    attached: () => [Buffer.from("{")],
    reason: "PROVENANCE_INVALID",
    message: /the envelope is not JSON/,
  },
  {
    name: "more bytes than are read",
    attached: () => [Buffer.alloc(1024 * 1024 + 1)],
    reason: "PROVENANCE_INVALID",
    message: /the provenance has 1048577 bytes; at most 1048576 are read/,
  },
];

for (const { name, attached, reason, message } of refusals) {
  test(`a VM whose root filesystem carries ${name} is not made, and nothing of it is staged`, async (t) => {
    const bed = await MetalBed.open(t);
    bed.assets.provenancesOf = (digest) => attached(bed, digest);
    const vmId = newId("vm");
    await assert.rejects(bed.client().createVm(bed.wish(vmId)), (error) => {
      assert.ok(isServiceError(error));
      assert.equal(error.reason, reason);
      assert.match(error.message, message);
      assert.notEqual(error.nextStep, "");
      return true;
    });
    assert.deepEqual(await bed.leftovers(), nothing);
  });
}

test("of several provenances one that holds is enough", async (t) => {
  const bed = await MetalBed.open(t);
  bed.assets.provenancesOf = (digest) => [
    provenanceOf(digest, makeSigningKey()),
    provenanceOf(digest, bed.assets.signer),
  ];
  await bed.createAndBoot();
});

test("assetmanagerd is asked once for a VM; later boots judge what was kept, also after a restart and without it", async (t) => {
  const bed = await MetalBed.open(t);
  const vm = await bed.createAndBoot();
  const { vmId, tenantId } = vm;
  assert.equal(bed.assets.provenanceCalls, 1);
  const kept = join(bed.paths(vmId).dir, "provenance.json");
  assert.equal((await stat(kept)).mode & 0o777, 0o400);
  await bed.client().shutdownVm({ tenantId, vmId });
  await bed.restart();
  bed.assets.failure = new ServiceError("DEPENDENCY_UNAVAILABLE", "assetmanagerd is away");
  await bed.client().bootVm({ tenantId, vmId });
  assert.equal(bed.assets.provenanceCalls, 1);
});

test("a key that is trusted no more stops the next boot of a VM that it was good enough for", async (t) => {
  const bed = await MetalBed.open(t);
  const { vmId, tenantId } = await bed.createAndBoot();
  await bed.client().shutdownVm({ tenantId, vmId });
  const ended = bed.machine(vmId);
  const next = makeSigningKey();
  bed.trustedKeys = [next.verificationKey];
  await bed.restart();
  await assert.rejects(
    bed.client().bootVm({ tenantId, vmId }),
    (error) => isServiceError(error) && error.reason === "PROVENANCE_INVALID",
  );
  assert.equal(bed.machine(vmId), ended, "no hypervisor was started");
});

test("rotation: both keys are trusted until the earlier one is taken out", async (t) => {
  const bed = await MetalBed.open(t);
  const next = makeSigningKey();
  bed.trustedKeys = [bed.assets.signer.verificationKey, next.verificationKey];
  await bed.restart();
  const { vmId, tenantId } = await bed.createAndBoot();
  await bed.client().shutdownVm({ tenantId, vmId });
  bed.trustedKeys = [next.verificationKey];
  // Built again since: the same bytes, signed by the key that is trusted now.
  bed.assets.provenancesOf = (digest) => [provenanceOf(digest, next)];
  await bed.restart();
  await bed.client().bootVm({ tenantId, vmId });
});

test("what was kept is judged, not believed: changed, cut short or of another asset, it is fetched again", async (t) => {
  const bed = await MetalBed.open(t);
  const { vmId, tenantId } = await bed.createAndBoot();
  const kept = join(bed.paths(vmId).dir, "provenance.json");
  const whole = await readFile(kept, "utf8");
  const damaged = [whole.slice(0, 100), whole.replace(/"rootfsDigest":"sha256:../, '"rootfsDigest":"sha256:zz'), "{}"];
  for (const text of damaged) {
    await bed.client().shutdownVm({ tenantId, vmId });
    await writeFile(kept, text);
    const before = bed.assets.provenanceCalls;
    await bed.client().bootVm({ tenantId, vmId });
    assert.equal(bed.assets.provenanceCalls, before + 1);
    assert.equal(await readFile(kept, "utf8"), whole);
  }
  await bed.client().shutdownVm({ tenantId, vmId });
  await writeFile(kept, "{}");
  bed.assets.provenancesOf = () => [];
  await assert.rejects(
    bed.client().bootVm({ tenantId, vmId }),
    (error) => isServiceError(error) && error.reason === "PROVENANCE_MISSING",
  );
  assert.ok(existsSync(kept));
  assert.deepEqual(
    (await readdir(bed.paths(vmId).dir)).filter((name) => name.endsWith(".new")),
    [],
  );
});
