import { nextState, type Transitions } from "@unkey/base";

/**
 * Where a VM is in its life:
 * - creating: its parts are being prepared; created: prepared, not booted yet;
 * - booting: the guest is coming up; running: the program was started; paused: frozen;
 * - stopping: powering off; stopped: ended, its private layer is kept;
 * - failed: it could not be created or booted, or its hypervisor died;
 * - deleting: its parts are being removed; deleted: only its row is left.
 */
export type VmState =
  | "creating"
  | "created"
  | "booting"
  | "running"
  | "paused"
  | "stopping"
  | "stopped"
  | "failed"
  | "deleting"
  | "deleted";

/** What moves a VM: a verb that somebody asks for. */
export type VmAction = "boot" | "pause" | "resume" | "shutdown" | "reboot" | "delete";

/** Or something that happens to it. */
export type VmHappening = "prepared" | "started" | "exited" | "fail" | "removed";

export type VmEvent = VmAction | VmHappening;

/**
 * A reboot goes through stopping, stopped and booting; `exited` in a live state is a program that ended by itself. Verbs on
 * one VM run one after the other, so those that arrive during creating, booting, stopping and deleting wait for their end.
 */
export const vmTransitions = {
  creating: { prepared: "created", fail: "failed" },
  created: { boot: "booting", shutdown: "stopping", delete: "deleting" },
  booting: { started: "running", exited: "stopped", fail: "failed" },
  running: {
    pause: "paused",
    shutdown: "stopping",
    reboot: "stopping",
    delete: "deleting",
    exited: "stopped",
    fail: "failed",
  },
  paused: { resume: "running", shutdown: "stopping", delete: "deleting", exited: "stopped", fail: "failed" },
  stopping: { exited: "stopped", fail: "failed" },
  stopped: { boot: "booting", delete: "deleting" },
  failed: { delete: "deleting" },
  deleting: { removed: "deleted" },
  deleted: {},
} as const satisfies Transitions<VmState, VmEvent>;

export const vmStates = Object.keys(vmTransitions) as readonly VmState[];

const actions = ["boot", "pause", "resume", "shutdown", "reboot", "delete"] as const satisfies readonly VmAction[];

/** The verbs that a VM in `state` takes: what a refusal can suggest and a console can offer. */
export function acceptedActions(state: VmState): VmAction[] {
  return actions.filter((action) => nextState<VmState, VmEvent>(vmTransitions, state, action) !== undefined);
}
