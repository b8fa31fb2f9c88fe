import { abortable } from "./abortable.ts";
import type { VmProcess } from "./hypervisor.ts";

/** Resolves once `condition` holds for `vm`, looking at each of its events; rejects with the signal's reason. */
export async function untilVm(
  vm: VmProcess,
  condition: (vm: VmProcess) => boolean,
  signal: AbortSignal,
): Promise<void> {
  signal.throwIfAborted();
  if (condition(vm)) return;
  const { promise, resolve } = Promise.withResolvers<void>();
  const unsubscribe = vm.subscribe(() => {
    if (condition(vm)) resolve();
  });
  try {
    await abortable(promise, signal);
  } finally {
    unsubscribe();
  }
}
