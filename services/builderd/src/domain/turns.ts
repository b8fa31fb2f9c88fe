import type { TenantId } from "@unkey/base";

/** Builds that one tenant may run at once: at least one place is never its own, so that it cannot keep the others out. */
export function tenantPlaces(concurrency: number, quotaConcurrent: number): number {
  return Math.min(quotaConcurrent, Math.max(1, concurrency - 1));
}

/**
 * Whose turn it is: the index of the oldest of `waiting` whose tenant has the fewest running, among tenants below their
 * places; undefined when nobody may begin.
 */
export function nextTurn(
  waiting: readonly TenantId[],
  running: readonly TenantId[],
  placesOf: (tenantId: TenantId) => number,
): number | undefined {
  const counts = new Map<TenantId, number>();
  for (const tenantId of running) counts.set(tenantId, (counts.get(tenantId) ?? 0) + 1);
  const full = new Map<TenantId, boolean>();
  let best: { readonly at: number; readonly count: number } | undefined;
  for (const [at, tenantId] of waiting.entries()) {
    const count = counts.get(tenantId) ?? 0;
    if (!full.has(tenantId)) full.set(tenantId, count >= placesOf(tenantId));
    if (full.get(tenantId) === true || (best !== undefined && best.count <= count)) continue;
    best = { at, count };
  }
  return best?.at;
}
