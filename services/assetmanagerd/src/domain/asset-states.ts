import { nextState, type Transitions } from "@unkey/base";

/**
 * - uploading: bytes are arriving; only its owner sees it
 * - available: stored and verified
 * - deleting: given up by its owner; nobody can use it, a later pass removes it
 * - error: the stored bytes are missing or wrong; the same bytes, stored again, mend it
 * - removed: there is no row any more
 */
export type AssetState = "uploading" | "available" | "deleting" | "error" | "removed";

export type AssetEvent = "finish" | "cancel" | "give_up" | "damage" | "mend" | "sweep";

export const assetTransitions = {
  uploading: { finish: "available", cancel: "removed" },
  available: { give_up: "deleting", damage: "error", sweep: "removed" },
  deleting: { give_up: "deleting", sweep: "removed" },
  error: { give_up: "deleting", mend: "available", sweep: "removed" },
  removed: {},
} as const satisfies Transitions<AssetState, AssetEvent>;

/** The state that `event` leads to, or undefined when the table refuses it. */
export function stateAfter(state: AssetState, event: AssetEvent): AssetState | undefined {
  return nextState<AssetState, AssetEvent>(assetTransitions, state, event);
}
