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
      await inParallel(vms, maxParallel, async (vm) => {
        // A reservation that has run out meanwhile only means that the VM is admitted without it.
        const { reservationId } = vm;
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
          // A program that has ended since an earlier attempt is not started a second time: that would hide its end.
          const before = await fleet.get(vm, acting, signal);
          const seen = before.incarnation > 0 ? before : await fleet.act(vm, "bootVm", acting, signal);
          await store.sawVm(claim, seen);
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

/** Removes all VMs of a deployment that did not come to serve, and gives back the room that was held for them. */
export class VmRemover {
  readonly #store: WorkStore;
  readonly #settler: VmSettler;
  readonly #fleet: Fleet;

  constructor(deps: { readonly store: WorkStore; readonly settler: VmSettler; readonly fleet: Fleet }) {
    this.#store = deps.store;
    this.#settler = deps.settler;
    this.#fleet = deps.fleet;
  }

  async removeAll(work: Work, signal: AbortSignal): Promise<void> {
    await this.#store.condemnVms(work.claim);
    const { vms } = await this.#store.load(work.claim);
    const open: VmRow[] = vms.filter((vm) => !vm.settled);
    await inParallel(open, maxParallel, async (vm) => {
      // Before the VM is settled: after that nobody comes back to it.
      await this.#fleet.releaseRoom(vm, work.acting, signal);
      await this.#settler.settle(vm, { graceful: false, signal });
    });
  }
}
