import type { Clock } from "@unkey/base";
import type { Metrics } from "@unkey/daemon";
import type { BuildFeed } from "./build-feed.ts";
import type { Build } from "./domain/build.ts";
import type { BuildEvent, BuildState } from "./domain/build-state.ts";
import type { BuildChange, BuildStore, StepBytes } from "./ports.ts";

export interface StepProgressDeps {
  readonly store: BuildStore;
  readonly feed: BuildFeed;
  readonly clock: Clock;
  readonly metrics: Metrics;
}

/** Somebody else has moved the build, a cancellation for one: what runs for it ends without a word. */
export class BuildMoved extends Error {
  override readonly name = "BuildMoved";
}

const secondsBuckets = [0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 600];

/** Moves one running build from state to state: row, timing, bytes, and those who watch. */
export class StepProgress {
  readonly build: Build;
  /** When this attempt began. */
  readonly startedAtMs: number;
  readonly #deps: StepProgressDeps;
  readonly #seconds;
  #bytes: StepBytes | undefined;
  #startedNs: bigint;

  constructor(deps: StepProgressDeps, build: Build) {
    this.#deps = deps;
    this.build = build;
    this.startedAtMs = deps.clock.nowMs();
    this.#startedNs = deps.clock.monotonicNs();
    this.#seconds = deps.metrics.histogram("unkey_build_step_seconds", "Duration of build steps.", secondsBuckets);
  }

  /** How far the running step is; `total` is 0 while it is unknown. */
  bytes(done: number, total: number): void {
    this.#bytes = { done, total };
    this.#deps.feed.setProgress(this.build.buildId, this.#bytes);
  }

  /** Throws BuildMoved when the build is no longer in `from`. */
  async move(from: BuildState, event: BuildEvent, change: BuildChange = {}): Promise<void> {
    const { store, feed, clock } = this.#deps;
    const { buildId } = this.build;
    const bytes = this.#bytes === undefined ? {} : { bytes: this.#bytes };
    const moved = await store.advance(this.build, from, event, { ...change, ...bytes }, clock.nowMs());
    if (!moved) throw new BuildMoved(`${buildId} is no longer ${from}`);
    const nowNs = clock.monotonicNs();
    this.#seconds.observe(Number(nowNs - this.#startedNs) / 1e9, { step: from });
    this.#startedNs = nowNs;
    this.#bytes = undefined;
    feed.clearProgress(buildId);
    feed.changed(buildId);
  }
}
