import type { Logger } from "@unkey/daemon";
import type { RouteTable } from "../ports.ts";
import type { AppStore } from "../store/app-store.ts";
import type { WorkStore } from "../store/work-store.ts";
import { inParallel } from "./in-parallel.ts";
import { GivenUp, type Step } from "./step.ts";
import type { VmSettler } from "./vm-settler.ts";

/** How long requests to the replaced release may still run. */
const drainMs = 10_000;
/** The settling pass leaves replaced VMs alone for so long; then it takes over from a drain step that died. */
const drainHoldMs = 60_000;
const maxParallel = 4;

/** Swaps the app to its new release in one transaction: before it nothing has changed, after it nothing is undone. */
export function routeStep(deps: {
  readonly store: WorkStore;
  readonly routes: RouteTable;
  readonly nowMs: () => number;
  readonly log: Logger;
}): Step {
  const { store, routes, nowMs, log } = deps;
  return {
    timeoutMs: 30_000,

    async run(work) {
      const swapped = await store.route(work.claim, nowMs(), nowMs() + drainHoldMs);
      if (!swapped) throw new GivenUp();
      // The swap stands; a table that could not be read again now is read again by its own pass.
      await routes.refresh().catch((error: unknown) => log.warn("routes are not refreshed yet", { error }));
      return { detail: "", ended: true };
    },

    undo: async () => undefined,
  };
}

/** Lets requests to the replaced VMs finish and removes those. It cannot fail: what it leaves, the settling pass does. */
export function drainStep(deps: {
  readonly store: AppStore;
  readonly routes: RouteTable;
  readonly settler: VmSettler;
  readonly log: Logger;
}): Step {
  const { store, routes, settler, log } = deps;
  return {
    timeoutMs: 240_000,

    async run(work, signal) {
      const { deploymentId } = work.deployment;
      const replaced = await store.replacedVms(deploymentId);
      if (replaced.length === 0) return { detail: "nothing was replaced", skipped: true };
      await work.progress(`draining ${replaced.length} VM(s)`);
      await routes.drain(
        replaced.map((vm) => vm.vmId),
        drainMs,
        signal,
      );
      let left = 0;
      await inParallel(replaced, maxParallel, async (vm) => {
        try {
          await settler.settle(vm, { graceful: true, signal });
        } catch (error) {
          signal.throwIfAborted();
          left += 1;
          log.warn("a replaced VM is left to the settling pass", { vmId: vm.vmId, error });
        }
      });
      return { detail: left === 0 ? `${replaced.length} VM(s) removed` : `${left} VM(s) will be removed later` };
    },

    undo: async () => undefined,
  };
}
