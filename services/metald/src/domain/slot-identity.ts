import { formatAddress, type Subnet, slotAddress } from "./subnet.ts";

/** Everything about a slot that other programs on the host can see. */
export interface SlotIdentity {
  readonly slot: number;
  readonly netns: string;
  /** The host's end of the VM's link; at most 15 characters, the kernel's limit. */
  readonly hostLink: string;
  readonly guestAddress: string;
  readonly guestMac: string;
  readonly hostLinkMac: string;
  readonly netnsLinkMac: string;
  readonly tapMac: string;
  /** uid and gid of the VM's processes and files. */
  readonly uid: number;
}

/** One data directory's metald: its name keeps two platforms on one host apart. */
export interface Instance {
  /** Six hexadecimal digits. */
  readonly id: string;
  readonly subnet: Subnet;
  readonly uidBase: number;
}

/** Addresses of the pool differ in their low 22 bits, so two instances never share a uid either. */
const uidCount = 2 ** 22;

/** Link names of every instance start like this: a VM must reach none of them. */
export const anyHostLinkPattern = "uk*";

export function hostLinkPrefix(instanceId: string): string {
  return `uk${instanceId}v`;
}

export function netnsPrefix(instanceId: string): string {
  return `unkey-${instanceId}-`;
}

export function slotIdentity(instance: Instance, slot: number): SlotIdentity {
  const address = slotAddress(instance.subnet, slot);
  // The second byte tells the four interfaces of one VM apart; 02 marks a locally administered address.
  const mac = (kind: number): string =>
    [0x02, kind, address >>> 24, (address >>> 16) & 255, (address >>> 8) & 255, address & 255]
      .map((byte) => byte.toString(16).padStart(2, "0"))
      .join(":");
  return {
    slot,
    netns: `${netnsPrefix(instance.id)}${slot}`,
    hostLink: `${hostLinkPrefix(instance.id)}${slot}`,
    guestAddress: formatAddress(address),
    guestMac: mac(0x75),
    hostLinkMac: mac(0x76),
    netnsLinkMac: mac(0x77),
    tapMac: mac(0x78),
    uid: instance.uidBase + (address % uidCount),
  };
}

/** The slot in a netns or link name of this instance; undefined for any other name. */
export function slotInName(prefix: string, name: string): number | undefined {
  const digits = name.startsWith(prefix) ? name.slice(prefix.length) : "";
  return /^[1-9]\d{0,4}$/.test(digits) ? Number(digits) : undefined;
}
