import { ServiceError } from "@unkey/base";

/** An IPv4 network; addresses are unsigned 32-bit numbers. */
export interface Subnet {
  readonly base: number;
  readonly prefix: number;
}

/** Offsets inside a subnet: 0 names the network, this one the host's side of every VM link. */
const hostOffset = 1;

/** VM slots are offsets into the subnet, so slot, address, MAC and uid of a VM all follow from one number. */
export const firstSlot = 2;

export function sizeOf(subnet: Subnet): number {
  return 2 ** (32 - subnet.prefix);
}

/** The last offset is the broadcast address, so the one before it is the last slot. */
export function lastSlot(subnet: Subnet): number {
  return sizeOf(subnet) - 2;
}

export function hostAddress(subnet: Subnet): number {
  return subnet.base + hostOffset;
}

export function slotAddress(subnet: Subnet, slot: number): number {
  return subnet.base + slot;
}

/** Dotted notation to a number; undefined when `text` is not an IPv4 address. */
export function parseAddress(text: string): number | undefined {
  const match = /^(\d{1,3})\.(\d{1,3})\.(\d{1,3})\.(\d{1,3})$/.exec(text);
  if (!match) return undefined;
  let address = 0;
  for (const part of match.slice(1)) {
    const byte = Number(part);
    if (byte > 255) return undefined;
    address = address * 256 + byte;
  }
  return address;
}

export function formatAddress(address: number): string {
  return [24, 16, 8, 0].map((shift) => (address >>> shift) & 255).join(".");
}

export function formatSubnet(subnet: Subnet): string {
  return `${formatAddress(subnet.base)}/${subnet.prefix}`;
}

/** Reads `a.b.c.d/n`. Throws INVALID_REQUEST naming `field` when it is no network or holds too few or too many VMs. */
export function parseSubnet(text: string, field: string): Subnet {
  const [address, prefixText, ...rest] = text.split("/");
  const base = parseAddress(address ?? "");
  const prefix = /^\d{1,2}$/.test(prefixText ?? "") ? Number(prefixText) : Number.NaN;
  if (base === undefined || rest.length > 0 || !(prefix >= 16 && prefix <= 29)) {
    throw new ServiceError("INVALID_REQUEST", `${field}: "${text}" is not an IPv4 network between /16 and /29`);
  }
  const subnet = { base, prefix };
  if (base % sizeOf(subnet) !== 0) {
    throw new ServiceError("INVALID_REQUEST", `${field}: "${text}" has bits set behind its prefix`);
  }
  return subnet;
}

/** True when the two networks share an address. Prefixes of 0 to 32 are accepted here. */
export function overlaps(a: Subnet, b: Subnet): boolean {
  return a.base < b.base + sizeOf(b) && b.base < a.base + sizeOf(a);
}

// 10.192.0.0/10: the upper quarter of 10/8, which home routers, container engines and cloud networks use least.
const pool: Subnet = { base: 0x0a_c0_00_00, prefix: 10 };
const poolPrefix = 20;
const poolCount = 2 ** (poolPrefix - pool.prefix);

/**
 * The /20 networks to try, in order, when none is configured: all of the pool, from a place that `seed` chooses, without
 * those that overlap a network `taken` by the host.
 */
export function candidateSubnets(seed: number, taken: readonly Subnet[]): Subnet[] {
  const candidates: Subnet[] = [];
  for (let i = 0; i < poolCount; i++) {
    const index = (seed + i) % poolCount;
    const subnet = { base: pool.base + index * 2 ** (32 - poolPrefix), prefix: poolPrefix };
    if (!taken.some((other) => overlaps(subnet, other))) candidates.push(subnet);
  }
  return candidates;
}
