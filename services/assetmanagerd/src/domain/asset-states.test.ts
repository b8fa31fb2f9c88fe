import assert from "node:assert/strict";
import { test } from "node:test";
import { type AssetEvent, type AssetState, assetTransitions, stateAfter } from "./asset-states.ts";

test("each state accepts its events, and nothing else", () => {
  const states = Object.keys(assetTransitions) as AssetState[];
  const events: AssetEvent[] = ["finish", "cancel", "give_up", "damage", "mend", "sweep"];
  const accepted = states.flatMap((state) =>
    events.map((event) => [state, event, stateAfter(state, event)] as const).filter(([, , next]) => next !== undefined),
  );
  assert.deepEqual(accepted, [
    ["uploading", "finish", "available"],
    ["uploading", "cancel", "removed"],
    ["available", "give_up", "deleting"],
    ["available", "damage", "error"],
    ["available", "sweep", "removed"],
    ["deleting", "give_up", "deleting"],
    ["deleting", "sweep", "removed"],
    ["error", "give_up", "deleting"],
    ["error", "mend", "available"],
    ["error", "sweep", "removed"],
  ]);
});
