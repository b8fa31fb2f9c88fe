import type { Transitions } from "@unkey/base";

/**
 * Where the monitor process of one VM is:
 * - created: the process runs, the guest has not executed an instruction;
 * - running, paused: the guest executes, or is frozen;
 * - ended: the guest is over (powered off, reset or crashed); the process stays, so that its final counters can be read;
 * - gone: no process is left.
 */
export type VmProcessState = "created" | "running" | "paused" | "ended" | "gone";

export type VmProcessEvent = "boot" | "pause" | "resume" | "end" | "exit";

export const vmProcessTransitions = {
  created: { boot: "running", end: "ended", exit: "gone" },
  running: { pause: "paused", end: "ended", exit: "gone" },
  paused: { resume: "running", end: "ended", exit: "gone" },
  ended: { exit: "gone" },
  gone: {},
} as const satisfies Transitions<VmProcessState, VmProcessEvent>;
