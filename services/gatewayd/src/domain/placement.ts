/** What counts when a VM is placed. Bytes are bigint because hosts declare them as 64-bit integers. */
export interface Size {
  readonly vcpuCount: number;
  readonly memoryBytes: bigint;
  readonly diskBytes: bigint;
}

export interface HostRoom {
  readonly hostId: string;
  readonly draining: boolean;
  readonly capacity: Size;
  readonly allocated: Size;
}

const resources = ["vcpuCount", "memoryBytes", "diskBytes"] as const;

/** The resources that `size` needs more of than the host has in all: it can never fit there. */
export function exceeded(host: HostRoom, size: Size): (keyof Size)[] {
  return resources.filter((name) => size[name] > host.capacity[name]);
}

/** True when `size` fits into what is free now. */
export function fits(host: HostRoom, size: Size): boolean {
  return (
    !host.draining && resources.every((name) => big(host.allocated[name]) + big(size[name]) <= big(host.capacity[name]))
  );
}

/** Share of the scarcest resource that would be free after placing `size`: higher is better. */
function headroom(host: HostRoom, size: Size): number {
  return Math.min(
    ...resources.map((name) => {
      const capacity = Number(host.capacity[name]);
      return capacity === 0 ? -1 : (capacity - Number(host.allocated[name]) - Number(size[name])) / capacity;
    }),
  );
}

/**
 * Hosts to try, best first: of `k` drawn at random the one with most headroom, then the next draw. Looking at a few
 * avoids that all replicas rush to the same emptiest host (Mitzenmacher, "The power of two choices", 2001).
 * `random` yields numbers in [0, 1).
 */
export function placementOrder(hosts: readonly HostRoom[], size: Size, k: number, random: () => number): HostRoom[] {
  const left = hosts.filter((host) => fits(host, size));
  const order: HostRoom[] = [];
  while (left.length > 0) {
    for (let i = 0; i < Math.min(k, left.length); i++) {
      const j = i + Math.floor(random() * (left.length - i));
      const [a, b] = [left[i], left[j]];
      if (a && b) [left[i], left[j]] = [b, a];
    }
    const drawn = left.slice(0, k);
    const best = drawn.reduce((a, b) => (headroom(b, size) > headroom(a, size) ? b : a));
    order.push(best);
    left.splice(left.indexOf(best), 1);
  }
  return order;
}

function big(value: number | bigint): bigint {
  return BigInt(value);
}
