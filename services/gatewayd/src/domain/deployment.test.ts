import assert from "node:assert/strict";
import { test } from "node:test";
import { nextState } from "@unkey/base";
import {
  type DeploymentEvent,
  type DeploymentState,
  deploymentTransitions,
  isTerminal,
  type StepEvent,
  type StepState,
  stepTransitions,
} from "./deployment.ts";

test("every pair of deployment state and event leads where it should, or nowhere", () => {
  const expected: Record<DeploymentState, Partial<Record<DeploymentEvent, DeploymentState>>> = {
    queued: { take: "running", cancel: "cancelled" },
    running: { take: "running", complete: "succeeded", fail: "failing", cancel: "cancelling" },
    failing: { take: "failing", undone: "failed" },
    cancelling: { take: "cancelling", undone: "cancelled" },
    succeeded: {},
    failed: {},
    cancelled: {},
  };
  const events: DeploymentEvent[] = ["take", "complete", "fail", "cancel", "undone"];
  for (const [state, row] of Object.entries(expected) as [DeploymentState, (typeof expected)[DeploymentState]][]) {
    for (const event of events) {
      assert.equal(
        nextState<DeploymentState, DeploymentEvent>(deploymentTransitions, state, event),
        row[event],
        `${state} ${event}`,
      );
    }
    assert.equal(isTerminal(state), Object.keys(row).length === 0);
  }
});

test("every pair of step state and event leads where it should, or nowhere", () => {
  const expected: Record<StepState, Partial<Record<StepEvent, StepState>>> = {
    pending: { start: "running", skip: "skipped" },
    running: { start: "running", finish: "done", fail: "failed", skip: "skipped", undo: "undone" },
    done: { undo: "undone" },
    failed: { undo: "failed" },
    undone: { undo: "undone" },
    skipped: { undo: "skipped" },
  };
  const events: StepEvent[] = ["start", "finish", "fail", "skip", "undo"];
  for (const [state, row] of Object.entries(expected) as [StepState, (typeof expected)[StepState]][]) {
    for (const event of events) {
      assert.equal(nextState<StepState, StepEvent>(stepTransitions, state, event), row[event], `${state} ${event}`);
    }
  }
});
