import assert from "node:assert/strict";
import { test } from "node:test";
import { acceptedEvents, nextState } from "@unkey/base";
import { acceptedActions, type VmEvent, type VmState, vmStates, vmTransitions } from "./vm-state.ts";

const next = (state: VmState, event: VmEvent) => nextState<VmState, VmEvent>(vmTransitions, state, event);

/** Every state that some run of events leads to from `from`. */
function reachable(from: VmState): Set<VmState> {
  const seen = new Set<VmState>([from]);
  for (const state of seen) {
    for (const event of acceptedEvents<VmState, VmEvent>(vmTransitions, state)) {
      const to = next(state, event);
      if (to !== undefined) seen.add(to);
    }
  }
  return seen;
}

test("every state can be reached and every state can end deleted", () => {
  assert.deepEqual([...reachable("creating")].toSorted(), [...vmStates].toSorted());
  for (const state of vmStates) assert.ok(reachable(state).has("deleted"), state);
});

test("a state that waits for something accepts its failure or its end, so that no VM hangs in it", () => {
  for (const state of ["creating", "booting", "stopping"] as const) assert.equal(next(state, "fail"), "failed", state);
  assert.deepEqual(acceptedEvents<VmState, VmEvent>(vmTransitions, "deleting"), ["removed"]);
});

test("suggests the verbs of a state and none that only happen", () => {
  assert.deepEqual(acceptedActions("paused"), ["resume", "shutdown", "delete"]);
  assert.deepEqual(acceptedActions("failed"), ["delete"]);
  assert.deepEqual(acceptedActions("booting"), []);
});
