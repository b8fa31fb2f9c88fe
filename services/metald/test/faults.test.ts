import assert from "node:assert/strict";
import { test } from "node:test";
import { isServiceError, newId } from "@unkey/base";
import type { MemoryFault, MemoryVerb } from "@unkey/vmm";
import { eventually, MetalBed, nothing, stateName } from "./support/metal-bed.ts";

const verbs: readonly MemoryVerb[] = [
  "create",
  "boot",
  "pause",
  "resume",
  "requestShutdown",
  "readBlockCounters",
  "destroy",
];
const faults: readonly MemoryFault[] = [{ kind: "fail" }, { kind: "hang" }, { kind: "die" }, { kind: "late", ms: 20 }];

/** What a caller does with a VM from its creation to its deletion. */
async function wholeLife(bed: MetalBed, vmId: string): Promise<string[]> {
  const id = { tenantId: bed.tenantId, vmId };
  const outcomes: string[] = [];
  const attempt = async (call: Promise<unknown>) => {
    const outcome = await call.then(
      () => "ok",
      (error: unknown) => (isServiceError(error) ? error.reason : String(error)),
    );
    outcomes.push(outcome);
  };
  const client = bed.client();
  await attempt(client.createVm(bed.wish(vmId)));
  await attempt(client.bootVm(id));
  await attempt(client.pauseVm(id));
  await attempt(client.resumeVm(id));
  await attempt(client.shutdownVm(id));
  return outcomes;
}

for (const verb of verbs) {
  for (const fault of faults) {
    test(`a hypervisor that is told to ${fault.kind} at ${verb} leaves a VM that is whole, ended or failed, and no trace after deletion`, async (t) => {
      const bed = await MetalBed.open(t, { hypervisorTimeoutMs: 150, bootTimeoutMs: 1_000 });
      bed.hypervisor.inject(verb, fault);
      const vmId = newId("vm");
      const outcomes = await wholeLife(bed, vmId);
      const named = outcomes.filter(
        (outcome) => outcome !== "ok" && !/^[A-Z_]+$/.test(outcome) && !/timeout/i.test(outcome),
      );
      assert.deepEqual(named, [], "every refusal has a name");
      const state = await eventually(async () => {
        const now = stateName(await bed.client().getVm({ tenantId: bed.tenantId, vmId }));
        return ["RUNNING", "PAUSED", "STOPPED", "FAILED"].includes(now) ? now : undefined;
      }, "a state to rest in");
      if (fault.kind === "late") assert.equal(state, "STOPPED");
      await eventually(
        () =>
          bed
            .client()
            .deleteVm({ tenantId: bed.tenantId, vmId })
            .then(
              () => true,
              () => undefined,
            ),
        "deletion",
      );
      assert.deepEqual(await bed.leftovers(), nothing);
      assert.equal(await bed.hypervisor.find(bed.paths(vmId).runDir), undefined);
      assert.equal(bed.run.sampler.size, 0);
      await eventually(
        () => bed.billaged.stopped.length === bed.billaged.started.length || undefined,
        "every begin has its end",
      );
    });
  }
}
