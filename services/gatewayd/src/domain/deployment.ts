import type { Transitions } from "@unkey/base";

/** `failing` and `cancelling` undo what was done; the caller sees them as running. */
export type DeploymentState = "queued" | "running" | "failing" | "cancelling" | "succeeded" | "failed" | "cancelled";
export type DeploymentEvent = "take" | "complete" | "fail" | "cancel" | "undone";

export const deploymentTransitions = {
  queued: { take: "running", cancel: "cancelled" },
  running: { take: "running", complete: "succeeded", fail: "failing", cancel: "cancelling" },
  failing: { take: "failing", undone: "failed" },
  cancelling: { take: "cancelling", undone: "cancelled" },
  succeeded: {},
  failed: {},
  cancelled: {},
} as const satisfies Transitions<DeploymentState, DeploymentEvent>;

export type StepState = "pending" | "running" | "done" | "failed" | "undone" | "skipped";
export type StepEvent = "start" | "finish" | "fail" | "skip" | "undo";

export const stepTransitions = {
  pending: { start: "running", skip: "skipped" },
  // Started again by whoever takes over from a dead replica.
  running: { start: "running", finish: "done", fail: "failed", skip: "skipped", undo: "undone" },
  done: { undo: "undone" },
  // Its effects are removed like those of the others, but it stays visible as the one that failed.
  failed: { undo: "failed" },
  undone: { undo: "undone" },
  skipped: { undo: "skipped" },
} as const satisfies Transitions<StepState, StepEvent>;

/** The steps of every deployment, in order. From `route` on the new release serves: nothing after it is undone. */
export const stepKinds = ["build", "place", "create", "boot", "health", "route", "drain"] as const;
export type StepKind = (typeof stepKinds)[number];

export const terminalStates: readonly DeploymentState[] = ["succeeded", "failed", "cancelled"];

export function isTerminal(state: DeploymentState): boolean {
  return terminalStates.includes(state);
}
