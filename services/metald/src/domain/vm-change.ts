import { nextState } from "@unkey/base";
import { type VmEvent, type VmState, vmTransitions } from "@unkey/model";
import type { GuestReport, VmEnd } from "@unkey/vmm";
import { exitOf, failureOf } from "./guest-end.ts";
import type { Failure, Verb, Vm, VmPatch } from "./vm.ts";

/** What is known when an event is recorded. */
export interface Facts {
  readonly nowMs: number;
  readonly verb: Verb | undefined;
  readonly report: GuestReport;
  readonly end: VmEnd | undefined;
}

/** What an event changes in a VM. A VM that nobody stopped may have failed instead of exited: then `failure` says how. */
export function changeOf(
  event: VmEvent,
  vm: Vm,
  facts: Facts,
): { readonly change: VmPatch; readonly failure: Omit<Failure, "lastLines"> | undefined } {
  const { nowMs, verb, report, end } = facts;
  const failure = event === "exited" && verb === "reap" ? failureOf(report, end) : undefined;
  const happened = failure ? "fail" : event;
  const state = nextState<VmState, VmEvent>(vmTransitions, vm.state, happened);
  if (state === undefined) throw new Error(`${vm.id}: ${happened} is not possible while ${vm.state}`);
  return { change: { state, ...detailsOf(happened, vm, { nowMs, report, end }) }, failure };
}

function detailsOf(event: VmEvent, vm: Vm, { nowMs, report, end }: Omit<Facts, "verb">): VmPatch {
  switch (event) {
    case "boot":
      return { incarnation: vm.incarnation + 1, exit: undefined, startedAtMs: 0, endedAtMs: 0 };
    case "started":
      return { startedAtMs: nowMs };
    case "exited":
    case "fail":
      return { ...(vm.incarnation > 0 ? { endedAtMs: nowMs, exit: exitOf(report, end) } : {}), record: undefined };
    case "removed":
      // The environment may hold secrets; the tombstone keeps what a bill refers to.
      return { spec: new Uint8Array(), slot: undefined, record: undefined };
    default:
      return {};
  }
}
