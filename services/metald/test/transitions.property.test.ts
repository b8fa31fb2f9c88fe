import assert from "node:assert/strict";
import { test } from "node:test";
import { type ErrorReason, isServiceError, newId, nextState } from "@unkey/base";
import { type VmAction, type VmEvent, type VmState, vmTransitions } from "@unkey/model";
import * as fc from "fast-check";
import { eventually, MetalBed, nothing, stateName } from "./support/metal-bed.ts";

type Deed = VmAction | "program ends" | "hypervisor dies" | "metald restarts";

const deeds: readonly Deed[] = [
  "boot",
  "pause",
  "resume",
  "shutdown",
  "reboot",
  "delete",
  "program ends",
  "hypervisor dies",
  "metald restarts",
];

/** Where an action takes a VM in the end, by the table alone; undefined when the table refuses it. */
function expected(state: VmState, deed: Deed): VmState | undefined {
  const next = (from: VmState, event: VmEvent) => nextState<VmState, VmEvent>(vmTransitions, from, event);
  const arrivals: Partial<Record<Deed, VmState>> = {
    boot: "running",
    pause: "paused",
    resume: "running",
    shutdown: "stopped",
    delete: "deleted",
  };
  const alive = state === "running" || state === "paused";
  switch (deed) {
    case "metald restarts":
      return state;
    case "program ends": // a frozen one cannot
      return state === "running" ? next(state, "exited") : state;
    case "hypervisor dies":
      return alive ? next(state, "fail") : state; // one that waits for its boot is made anew
    case "reboot":
      return next(state, deed) && "running";
    default:
      return arrivals[deed] === state || next(state, deed) ? arrivals[deed] : undefined;
  }
}

test("whatever is asked for and whatever happens, in any order, a VM is where the table says", async (t) => {
  await fc.assert(
    fc.asyncProperty(fc.array(fc.constantFrom(...deeds), { maxLength: 12 }), async (sequence) => {
      await using bed = await MetalBed.openDisposable();
      const vmId = newId("vm");
      const id = { tenantId: bed.tenantId, vmId };
      await bed.client().createVm(bed.wish(vmId));
      let state: VmState = "created";
      const current = async () => stateName(await bed.client().getVm(id)).toLowerCase() as VmState;
      const outcome = async (call: Promise<unknown>): Promise<ErrorReason | "ok"> =>
        call.then(
          () => "ok",
          (error: unknown) => (isServiceError(error) ? error.reason : assert.fail(String(error))),
        );
      const actions: Record<VmAction, () => Promise<unknown>> = {
        boot: () => bed.client().bootVm(id),
        pause: () => bed.client().pauseVm(id),
        resume: () => bed.client().resumeVm(id),
        shutdown: () => bed.client().shutdownVm(id),
        reboot: () => bed.client().rebootVm(id),
        delete: () => bed.client().deleteVm(id),
      };
      for (const deed of sequence) {
        const wanted = expected(state, deed);
        const hasProcess = (await bed.hypervisor.find(bed.paths(vmId).runDir)) !== undefined;
        switch (deed) {
          case "metald restarts":
            await bed.restart();
            break;
          case "program ends":
            if (state === "running") bed.machine(vmId).exitApp({ code: 0 });
            break;
          case "hypervisor dies":
            if (hasProcess) bed.machine(vmId).die();
            break;
          default:
            assert.equal(await outcome(actions[deed]()), wanted ? "ok" : "VM_STATE_CONFLICT", `${deed} while ${state}`);
        }
        state = wanted ?? state;
        const where = state;
        await eventually(async () => ((await current()) === where ? true : undefined), `${deed} leads to ${where}`);
      }
      await bed.client().deleteVm(id);
      assert.deepEqual(await bed.leftovers(), nothing);
    }),
    { numRuns: 60 },
  );
  t.diagnostic("60 lives");
});
