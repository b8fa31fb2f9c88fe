import assert from "node:assert/strict";
import { test } from "node:test";
import { nextState } from "@unkey/base";
import { type BuildEvent, type BuildState, buildTransitions, isTerminal } from "./build-state.ts";

const states = Object.keys(buildTransitions) as BuildState[];
const events: BuildEvent[] = ["pull", "extract", "write", "register", "complete", "fail", "cancel", "requeue"];

/** The table once more, from the reader's side: which states accept an event, and where it leads. */
const accepted: Record<BuildEvent, Partial<Record<BuildState, BuildState>>> = {
  pull: { pending: "pulling" },
  extract: { pulling: "extracting" },
  write: { extracting: "writing" },
  register: { writing: "registering" },
  complete: { pulling: "completed", registering: "completed" },
  fail: { pending: "failed", pulling: "failed", extracting: "failed", writing: "failed", registering: "failed" },
  cancel: {
    pending: "cancelled",
    pulling: "cancelled",
    extracting: "cancelled",
    writing: "cancelled",
    registering: "cancelled",
  },
  requeue: {
    pending: "pending",
    pulling: "pending",
    extracting: "pending",
    writing: "pending",
    registering: "pending",
  },
};

for (const state of states) {
  for (const event of events) {
    const to = accepted[event][state];
    test(`${state} + ${event} → ${to ?? "refused"}`, () => {
      assert.equal(nextState<BuildState, BuildEvent>(buildTransitions, state, event), to);
    });
  }
}

test("a terminal state accepts nothing, and every other one can fail and be cancelled", () => {
  for (const state of states) {
    const ways = Object.keys(buildTransitions[state]);
    assert.equal(isTerminal(state), ways.length === 0);
    if (!isTerminal(state)) assert.ok(ways.includes("fail") && ways.includes("cancel") && ways.includes("requeue"));
  }
});
