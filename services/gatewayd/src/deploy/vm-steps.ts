import { create } from "@bufbuild/protobuf";
import { EnvVarSchema } from "@unkey/api/common";
import { VmSpecSchema } from "@unkey/api/metal";
import type { Fleet } from "../adapters/fleet.ts";
import { planProcess } from "../domain/release-plan.ts";
import type { VmRow } from "../store/rows.ts";
import type { WorkStore } from "../store/work-store.ts";
import type { AppObserver } from "./app-observer.ts";
import { inParallel } from "./in-parallel.ts";
import type { Step, Work } from "./step.ts";
import type { VmSettler } from "./vm-settler.ts";

const maxParallel = 4;

/** Creates each VM under the id that the place step stored. */
export function createStep(deps: {
  readonly fleet: Fleet;
  readonly store: WorkStore;
  readonly remover: VmRemover;
}): Step {
  const { fleet, store, remover } = deps;
  return {
    timeoutMs: 180_000,

    async run(work, signal) {
      const { deployment, acting, claim } = work;
      const { process, request, rootfsAssetId, appName, vms } = deployment;
      if (!process || !request.resources) throw new Error("the create step ran before the build step");
      const { argv, env } = planProcess(process, { argv: request.argv, env: request.env, port: request.port });
      const spec = create(VmSpecSchema, {
        resources: request.resources,
        rootfsAssetId,
        hostname: appName,
        process: { ...process, argv: [...argv], env: env.map((each) => create(EnvVarSchema, each)) },
      });
      const again = deployment.steps.some((step) => step.kind === "create" && step.attempts > 1);
      await inParallel(vms, maxParallel, async (vm) => {
        // A reservation is consumed once; whoever takes over has to be admitted without it.
        const reservationId = again ? "" : vm.reservationId;
        await store.sawVm(claim, await fleet.create(vm, { spec, reservationId }, acting, signal));
      });
      return { detail: vms.length === 1 ? `${vms[0]?.vmId}` : `${vms.length} VMs` };
    },

    undo: (work, signal) => remover.removeAll(work, signal),
  };
}

/** Boots each VM; done when every guest has started its program. */
export function bootStep(deps: {
  readonly fleet: Fleet;
  readonly store: WorkStore;
  readonly observer: AppObserver;
}): Step {
  const { fleet, store, observer } = deps;
  return {
    timeoutMs: 180_000,

    async run(work, signal) {
      const { claim, deployment, acting } = work;
      await inParallel(deployment.vms, maxParallel, async (vm) => {
        try {
          await store.sawVm(claim, await fleet.act(vm, "bootVm", acting, signal));
        } catch (error) {
          throw await observer.explain(vm, error, acting, signal);
        }
      });
      return { detail: "the program was started" };
    },

    // Removing the VM, as the create step's undo does, ends it too.
    undo: async () => undefined,
  };
}

/** Waits until each VM serves its port. */
export function healthStep(deps: { readonly observer: AppObserver; readonly nowMs: () => number }): Step {
  const { observer, nowMs } = deps;
  return {
    timeoutMs: 700_000,

    async run(work, signal) {
      const { deployment, acting } = work;
      const { healthCheck } = deployment.request;
      const step = deployment.steps.find(({ kind }) => kind === "health");
      const deadlineMs = (healthCheck?.deadlineMs ?? 0) || defaultHealthDeadlineMs;
      // However long the replica that began was away, the app gets a fair look.
      const leastMs = (step?.attempts ?? 1) > 1 ? resumedLeastMs : 0;
      const check = {
        port: deployment.port,
        httpPath: healthCheck?.httpPath ?? "",
        deadlineMs,
        deadlineAtMs: Math.max((step?.startedAtMs ?? nowMs()) + deadlineMs, nowMs() + leastMs),
      };
      await inParallel(deployment.vms, deployment.vms.length, (vm) => observer.untilHealthy(vm, check, acting, signal));
      return { detail: `port ${check.port} serves` };
    },

    undo: async () => undefined,
  };
}

const resumedLeastMs = 3000;
/** The contract's default for HealthCheck.deadline_ms. */
export const defaultHealthDeadlineMs = 30_000;

/** Removes all VMs of a deployment that did not come to serve. */
export class VmRemover {
  readonly #store: WorkStore;
  readonly #settler: VmSettler;

  constructor(store: WorkStore, settler: VmSettler) {
    this.#store = store;
    this.#settler = settler;
  }

  async removeAll(work: Work, signal: AbortSignal): Promise<void> {
    await this.#store.condemnVms(work.claim);
    const { vms } = await this.#store.load(work.claim);
    const open: VmRow[] = vms.filter((vm) => !vm.settled);
    await inParallel(open, maxParallel, async (vm) => {
      await this.#settler.settle(vm, { graceful: false, signal });
    });
  }
}
