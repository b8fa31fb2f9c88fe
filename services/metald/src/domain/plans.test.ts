import assert from "node:assert/strict";
import { test } from "node:test";
import { nextState } from "@unkey/base";
import { type VmEvent, type VmState, vmStates, vmTransitions } from "@unkey/model";
import { plans, type StepKind } from "./plans.ts";

/** What takes back what each making step makes. */
const undoOf: Partial<Record<StepKind, readonly StepKind[]>> = {
  "stage-assets": ["remove-files", "release-lease"],
  "make-disks": ["remove-files"],
  "make-network": ["remove-network"],
  "make-cgroup": ["remove-cgroup"],
  "define-process": ["kill-process"],
  "begin-metering": ["end-metering"],
};

test("deletion and a failed creation take back everything that any plan makes", () => {
  for (const { items } of Object.values(plans)) {
    for (const item of items) {
      for (const undo of "step" in item ? (undoOf[item.step] ?? []) : []) {
        assert.ok(
          plans.delete.items.some((other) => "step" in other && other.step === undo),
          undo,
        );
        if (plans.create.items.includes(item)) assert.ok(plans.create.undo.includes(undo), undo);
      }
    }
  }
});

test("no final sample after the cgroup or netns is gone, and no process left when its meter is closed", () => {
  for (const [verb, { items, undo }] of Object.entries(plans)) {
    for (const steps of [items.flatMap((item) => ("step" in item ? [item.step] : [])), undo]) {
      const meter = steps.lastIndexOf("end-metering");
      if (meter === -1) continue;
      for (const late of ["kill-process", "remove-cgroup", "remove-network", "remove-files"] as const) {
        const at = steps.indexOf(late);
        assert.ok(at === -1 || at > steps.indexOf("end-metering"), `${verb}: ${late}`);
      }
    }
  }
});

test("the events of a plan lead from one state to the next by the table, and each failure is possible where it may come", () => {
  for (const [verb, { items, retryable }] of Object.entries(plans)) {
    const events = items.flatMap((item) => ("event" in item ? [item.event] : []));
    const first = events[0];
    if (first === undefined) continue;
    const starts = vmStates.filter((state) => nextState<VmState, VmEvent>(vmTransitions, state, first));
    assert.ok(starts.length > 0, verb);
    for (const start of starts) {
      let state: VmState | undefined = start;
      for (const event of events) {
        const next: VmState | undefined = nextState<VmState, VmEvent>(vmTransitions, state, event);
        assert.ok(next, `${verb}: ${event} while ${state}`);
        state = next;
        const isLast = event === events.at(-1);
        // Between two events of a plan steps run; `stopped` is only passed through by a reboot.
        if (!isLast && !retryable && state !== "stopped") {
          assert.equal(
            nextState<VmState, VmEvent>(vmTransitions, state, "fail"),
            "failed",
            `${verb} fails while ${state}`,
          );
        }
      }
    }
  }
});

test("no process is defined whose root filesystem was not checked after it was staged", () => {
  for (const { items } of Object.values(plans)) {
    const steps = items.flatMap((item) => ("step" in item ? [item.step] : []));
    const defined = steps.indexOf("define-process");
    if (defined === -1) continue;
    const checked = steps.lastIndexOf("check-rootfs", defined);
    for (const before of ["check-provenance", "stage-assets"] as const) {
      assert.ok(checked > steps.lastIndexOf(before, defined), before);
    }
  }
});
