import type { TenantId, VmId } from "@unkey/base";
import type { VmAction, VmState } from "@unkey/model";
import type { VmRecord } from "@unkey/vmm";

/** How the program ended: exactly one is set. */
export type Exit = { readonly code: number } | { readonly signal: string } | { readonly unknownBecause: string };

export interface Failure {
  /** A key of the error catalogue. */
  readonly reason: string;
  readonly message: string;
  /** Last lines of the program's output and of the console. */
  readonly lastLines: readonly string[];
}

/** A verb that has begun and not ended: what a metald that starts again takes up. */
export interface Operation {
  readonly verb: Verb;
  /** Items of the plan that are done for good; those behind it may have been done too and are repeated. */
  readonly index: number;
  /** Set once the verb has failed: what is left is to undo it. */
  readonly failure?: Failure;
  /** End the guest without asking it. */
  readonly force?: boolean;
}

/** What a VM's driver does: the actions that a caller can ask for, and metald's own upkeep. */
export type Verb =
  | VmAction
  | "create"
  /** Collects a VM that ended by itself. */
  | "reap"
  /** Gives an ended VM's netns and cgroup back. */
  | "release"
  /** Takes a lease anew. */
  | "restage";

/** What was placed for a VM as its root filesystem. */
export interface StagedRootfs {
  /** sha256:<64 hex digits> of the image. */
  readonly digest: string;
  /** The same of each further file that the image is made of, in order. */
  readonly partDigests: readonly string[];
}

/** One VM of this host. */
export interface Vm {
  readonly id: VmId;
  readonly tenantId: TenantId;
  readonly appId: string;
  readonly deploymentId: string;
  /** Hex sha256 of the request that made it: tells a repeat from another wish with the same id. */
  readonly specHash: string;
  /** A serialized unkey.metal.v1.VmSpec; empty once deleted, because it holds the environment. */
  readonly spec: Uint8Array;
  readonly vcpuCount: number;
  readonly memoryBytes: number;
  readonly diskBytes: number;
  readonly rootfsAssetId: string;
  /** Undefined once deleted. */
  readonly slot: number | undefined;
  readonly state: VmState;
  /** Counts boots from 1; 0 before the first. */
  readonly incarnation: number;
  readonly revision: number;
  readonly exit: Exit | undefined;
  readonly failure: Failure | undefined;
  readonly createdAtMs: number;
  readonly startedAtMs: number;
  readonly endedAtMs: number;
  readonly record: VmRecord | undefined;
  readonly leaseId: string | undefined;
  /** Undefined until it is staged, and for VMs of releases before root filesystems had parts. */
  readonly stagedRootfs: StagedRootfs | undefined;
  readonly operation: Operation | undefined;
}

/** What a change of a VM may set. */
export type VmPatch = Partial<
  Pick<
    Vm,
    | "state"
    | "incarnation"
    | "exit"
    | "failure"
    | "startedAtMs"
    | "endedAtMs"
    | "record"
    | "leaseId"
    | "stagedRootfs"
    | "operation"
    | "spec"
    | "slot"
  >
>;
