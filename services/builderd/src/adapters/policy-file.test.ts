import assert from "node:assert/strict";
import { mkdtemp, rename, rm, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { type TestContext, test } from "node:test";
import { newId } from "@unkey/base";
import { createLogger } from "@unkey/daemon";
import { defaultBuildPolicy, policyDigest } from "../domain/policy.ts";
import { defaultBuildQuota } from "../domain/quota.ts";
import { PolicyFile } from "./policy-file.ts";

async function fileOf(context: TestContext) {
  const directory = await mkdtemp(join(tmpdir(), "policy-"));
  context.after(() => rm(directory, { recursive: true, force: true }));
  const path = join(directory, "policy.json");
  return {
    path,
    log: createLogger({ write: () => undefined }),
    /** As editors and deployment tools do it. */
    write: async (document: unknown) => {
      const text = typeof document === "string" ? document : JSON.stringify(document);
      await writeFile(`${path}.new`, text);
      await rename(`${path}.new`, path);
    },
  };
}

test("without a file the defaults hold", async (context) => {
  const { log } = await fileOf(context);
  assert.deepEqual(new PolicyFile(undefined, log).rulesOf(newId("tenant")), {
    policy: defaultBuildPolicy,
    policyDigest: policyDigest(defaultBuildPolicy),
    quota: defaultBuildQuota,
  });
});

test("a changed file holds from then on, for the tenants it names", async (context) => {
  const { path, write, log } = await fileOf(context);
  const [named, other] = [newId("tenant"), newId("tenant")];
  await write({ default: { setuid: "strip" } });
  const file = new PolicyFile(path, log);
  const before = file.rulesOf(named);
  assert.equal(before.policy.setuid, "strip");
  await write({ default: { setuid: "strip" }, tenants: { [named]: { setuid: "refuse" } } });
  assert.equal(file.rulesOf(named).policy.setuid, "refuse");
  assert.notEqual(file.rulesOf(named).policyDigest, before.policyDigest);
  assert.equal(file.rulesOf(other).policyDigest, before.policyDigest);
});

test("a wrong file is refused at the start; later the last right one holds and a mistake has a name", async (context) => {
  const { path, write, log } = await fileOf(context);
  const tenantId = newId("tenant");
  await write({ default: { setuid: "maybe" } });
  assert.throws(() => new PolicyFile(path, log), /default\.setuid: is none of keep, strip, refuse/);
  await write({ default: { setuid: "strip" } });
  const file = new PolicyFile(path, log);
  file.check();
  await write({ default: { setuid: "maybe" } });
  assert.equal(file.rulesOf(tenantId).policy.setuid, "strip");
  assert.throws(() => file.check(), /the build policy .*policy\.json: default\.setuid: /);
  await write({ default: { setuid: "refuse" } });
  file.check();
  assert.equal(file.rulesOf(tenantId).policy.setuid, "refuse");
});
