import type { VmEvent } from "@unkey/model";
import type { Verb } from "./vm.ts";

/**
 * What a verb consists of. Every kind finds out what is done already and does the rest, so that each may be run again
 * after a crash anywhere; the ones that take away are the undo of those that make.
 */
export type StepKind =
  | "check-provenance"
  | "stage-assets"
  | "check-rootfs"
  | "make-disks"
  | "make-network"
  | "make-cgroup"
  | "define-process"
  | "begin-metering"
  | "start-guest"
  | "pause-guest"
  | "resume-guest"
  | "stop-guest"
  | "end-metering"
  | "kill-process"
  | "remove-cgroup"
  | "remove-network"
  | "remove-files"
  | "release-lease";

/** A step to run, or an event to record: only events are written down, and the steps since the last one are repeated. */
export type PlanItem = { readonly step: StepKind } | { readonly event: VmEvent };

export interface Plan {
  readonly items: readonly PlanItem[];
  /** Run when a step fails; then the VM has failed. */
  readonly undo: readonly StepKind[];
  /** A step that fails leaves VM and plan as they are, for another attempt. */
  readonly retryable?: boolean;
}

const steps = (...kinds: StepKind[]): PlanItem[] => kinds.map((step) => ({ step }));

// Boot makes everything sure again: a VM that was stopped may have lost its netns and cgroup to a drain or a host restart, and
// the key that its root filesystem was signed with may be trusted no more.
const boot: readonly PlanItem[] = [
  { event: "boot" },
  ...steps("check-provenance", "check-rootfs", "make-disks", "make-network", "make-cgroup", "define-process"),
  ...steps("begin-metering", "start-guest"),
  { event: "started" },
];
const undoBoot: readonly StepKind[] = ["end-metering", "kill-process"];
const stop = steps("stop-guest", "end-metering", "kill-process");
const release: readonly StepKind[] = ["remove-cgroup", "remove-network"];
const removeAll: readonly StepKind[] = ["end-metering", "kill-process", ...release, "remove-files", "release-lease"];

/** The plan of each verb. Netns and cgroup outlive the guest until deletion, so that anybody can compare the bill with them. */
export const plans: Readonly<Record<Verb, Plan>> = {
  create: {
    items: [
      ...steps("check-provenance", "stage-assets", "check-rootfs"),
      ...steps("make-disks", "make-network", "make-cgroup", "define-process"),
      { event: "prepared" },
    ],
    undo: removeAll,
  },
  boot: { items: boot, undo: undoBoot },
  pause: { items: [...steps("pause-guest"), { event: "pause" }], undo: [], retryable: true },
  resume: { items: [...steps("resume-guest"), { event: "resume" }], undo: [], retryable: true },
  shutdown: { items: [{ event: "shutdown" }, ...stop, { event: "exited" }], undo: undoBoot },
  reboot: { items: [{ event: "reboot" }, ...stop, { event: "exited" }, ...boot], undo: undoBoot },
  delete: {
    items: [{ event: "delete" }, ...removeAll.map((step) => ({ step })), { event: "removed" }],
    undo: [],
    retryable: true,
  },
  reap: { items: [...steps("end-metering", "kill-process"), { event: "exited" }], undo: undoBoot },
  restage: { items: steps("stage-assets"), undo: [], retryable: true },
  release: { items: release.map((step) => ({ step })), undo: [], retryable: true },
};
