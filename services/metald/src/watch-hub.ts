import type { VmId } from "@unkey/base";
import type { Vm } from "./domain/vm.ts";

interface Watcher {
  readonly wants: (vm: Vm) => boolean;
  /** Newest state of each VM that changed and was not delivered yet: a slow reader misses steps, never the last one. */
  readonly pending: Map<VmId, Vm>;
  wake: () => void;
}

/** Spreads changes of VMs to whoever watches. */
export class WatchHub {
  readonly #watchers = new Set<Watcher>();

  publish(vm: Vm): void {
    for (const watcher of this.#watchers) {
      if (!watcher.wants(vm)) continue;
      watcher.pending.delete(vm.id);
      watcher.pending.set(vm.id, vm);
      watcher.wake();
    }
  }

  /** Yields what `current` answers and then each change of a VM that `wants` accepts, until `signal` aborts. */
  async *watch(
    wants: (vm: Vm) => boolean,
    current: () => Promise<readonly Vm[]>,
    signal: AbortSignal,
  ): AsyncGenerator<Vm> {
    const watcher: Watcher = { wants, pending: new Map(), wake: () => undefined };
    const wake = () => watcher.wake();
    signal.addEventListener("abort", wake);
    this.#watchers.add(watcher); // before the first look, so that no change falls between
    try {
      for (const vm of await current()) {
        if ((watcher.pending.get(vm.id)?.revision ?? 0) < vm.revision) watcher.pending.set(vm.id, vm);
      }
      while (!signal.aborted) {
        for (const [id, vm] of watcher.pending) {
          watcher.pending.delete(id);
          yield vm;
          if (signal.aborted) return;
        }
        if (watcher.pending.size === 0) {
          const { promise, resolve } = Promise.withResolvers<void>();
          watcher.wake = resolve;
          if (!signal.aborted) await promise;
        }
      }
    } finally {
      this.#watchers.delete(watcher);
      signal.removeEventListener("abort", wake);
    }
  }
}
