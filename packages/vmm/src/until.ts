import type { VmProcess } from "./hypervisor.ts";

/** Resolves once `condition` holds for `vm`, looking at each of its events; rejects with the signal's reason. */
export async function untilVm(
  vm: VmProcess,
  condition: (vm: VmProcess) => boolean,
  signal: AbortSignal,
): Promise<void> {
  signal.throwIfAborted();
  if (condition(vm)) return;
  const { promise, resolve, reject } = Promise.withResolvers<void>();
  const abort = (): void => reject(signal.reason);
  const unsubscribe = vm.subscribe(() => {
    if (condition(vm)) resolve();
  });
  signal.addEventListener("abort", abort, { once: true });
  try {
    await promise;
  } finally {
    unsubscribe();
    signal.removeEventListener("abort", abort);
  }
}
