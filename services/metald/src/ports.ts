import type { SlotIdentity } from "./domain/slot-identity.ts";

/** What a hypervisor process and its guest need to know about their network. */
export interface VmNetwork {
  readonly netns: string;
  readonly tap: string;
  readonly guestAddress: string;
  readonly guestMac: string;
  /** Reached through the tap, outside the guest's own /32. */
  readonly gateway: string;
  readonly resolvers: readonly string[];
}

/** Networks of VMs, by slot. Every verb may be repeated. */
export interface Networks {
  /** Makes the slot's network complete and open for no process yet; an unfinished one is made anew. */
  ensure(identity: SlotIdentity): Promise<VmNetwork>;
  remove(identity: SlotIdentity): Promise<void>;
  /** Slots of this instance that the host holds anything of. */
  present(): Promise<number[]>;
}
