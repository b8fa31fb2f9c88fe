import type { Vm } from "@unkey/api/metal";
import type { Clock } from "@unkey/base";
import type { Logger } from "@unkey/daemon";
import type { Fleet } from "../adapters/fleet.ts";
import type { Acting } from "../adapters/platform.ts";
import type { AppStore } from "../store/app-store.ts";
import type { VmRow } from "../store/rows.ts";

const batchSize = 50;

/**
 * Brings VMs to what is wanted of them. Whoever wants a VM stopped or gone first stores that and then settles it; what
 * a crash or a silent host left open, the pass finishes.
 */
export class VmSettler {
  readonly #fleet: Fleet;
  readonly #store: AppStore;
  readonly #clock: Clock;
  readonly #log: Logger;

  constructor(deps: {
    readonly fleet: Fleet;
    readonly store: AppStore;
    readonly clock: Clock;
    readonly log: Logger;
  }) {
    this.#fleet = deps.fleet;
    this.#store = deps.store;
    this.#clock = deps.clock;
    this.#log = deps.log;
  }

  /** One VM, now. Throws what its host answers; the wish stays open then. */
  async settle(
    vm: VmRow,
    options: { readonly graceful: boolean; readonly signal: AbortSignal },
  ): Promise<Vm | undefined> {
    const { graceful, signal } = options;
    const acting: Acting = { tenantId: vm.tenantId, subject: "gatewayd", roles: [], requestId: vm.vmId };
    if (vm.wanted === "running") return undefined;
    const seen =
      vm.wanted === "deleted"
        ? await this.#fleet.remove(vm, graceful, acting, signal)
        : await this.#fleet.shutdown(vm, false, acting, signal);
    await this.#store.settle(vm, seen);
    return seen;
  }

  /** One pass over what is open. It takes no hint, so a crash anywhere is finished by the next pass. */
  async pass(signal: AbortSignal): Promise<void> {
    const open = await this.#store.unsettled(this.#clock.nowMs(), batchSize);
    for (const vm of open) {
      if (signal.aborted) return;
      await this.settle(vm, { graceful: true, signal }).catch((error: unknown) =>
        this.#log.warn("a VM is not yet as wanted", { vmId: vm.vmId, wanted: vm.wanted, error }),
      );
    }
    await this.#store.finishDeletes(this.#clock.nowMs());
  }
}
