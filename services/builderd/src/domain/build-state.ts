import type { Transitions } from "@unkey/base";

export type BuildState =
  | "pending"
  | "pulling"
  | "extracting"
  | "writing"
  | "registering"
  | "completed"
  | "failed"
  | "cancelled";

/** `requeue` starts over after the process died; `complete` from pulling is a cache hit. */
export type BuildEvent = "pull" | "extract" | "write" | "register" | "complete" | "fail" | "cancel" | "requeue";

export const buildTransitions = {
  pending: { pull: "pulling", fail: "failed", cancel: "cancelled", requeue: "pending" },
  pulling: { extract: "extracting", complete: "completed", fail: "failed", cancel: "cancelled", requeue: "pending" },
  extracting: { write: "writing", fail: "failed", cancel: "cancelled", requeue: "pending" },
  writing: { register: "registering", fail: "failed", cancel: "cancelled", requeue: "pending" },
  registering: { complete: "completed", fail: "failed", cancel: "cancelled", requeue: "pending" },
  completed: {},
  failed: {},
  cancelled: {},
} as const satisfies Transitions<BuildState, BuildEvent>;

export function isTerminal(state: BuildState): boolean {
  return state === "completed" || state === "failed" || state === "cancelled";
}
