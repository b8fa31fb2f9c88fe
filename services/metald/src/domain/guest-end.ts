import type { GuestReport, VmEnd } from "@unkey/vmm";
import { signalName } from "./signals.ts";
import type { Exit, Failure } from "./vm.ts";

/** How the program ended, in the guest's words where it had any. */
export function exitOf(report: GuestReport, end: VmEnd | undefined): Exit {
  const { exited, failed } = report;
  if (exited === undefined && failed) return { unknownBecause: "the program never started" };
  if (exited === undefined) return { unknownBecause: end ? describe(end) : "the VM's process was gone" };
  if ("code" in exited) return { code: exited.code };
  return { signal: signalName(exited.signal) };
}

/** Why a VM that nobody stopped is over, if that is a failure: undefined after a program that ended by itself. */
export function failureOf(report: GuestReport, end: VmEnd | undefined): Omit<Failure, "lastLines"> | undefined {
  if (report.failed) {
    const { step, reason } = report.failed;
    return { reason: "GUEST_FAILED", message: step === "app" ? reason : `the guest failed at "${step}": ${reason}` };
  }
  if (report.exited) return undefined;
  if (end?.by === "guest") {
    return { reason: "GUEST_CRASHED", message: `the guest ended before its program did (${end.reason})` };
  }
  return { reason: "VM_DIED", message: `the VM's hypervisor process ended (${end?.reason ?? "unknown"})` };
}

function describe(end: VmEnd): string {
  return end.by === "guest" ? `the guest ended without a word (${end.reason})` : `the VM was ended (${end.reason})`;
}
