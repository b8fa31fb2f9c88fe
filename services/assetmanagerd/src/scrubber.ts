import { type Clock, isServiceError } from "@unkey/base";
import type { Counter, Gauge, Logger, Metrics } from "@unkey/daemon";
import type { Digest } from "./domain/asset.ts";
import type { BlobCatalog } from "./ports.ts";
import type { StoredBlobs } from "./stored-blobs.ts";

export interface ScrubberDeps {
  readonly catalog: BlobCatalog;
  readonly stored: StoredBlobs;
  readonly clock: Clock;
  readonly log: Logger;
  readonly metrics: Metrics;
  /** At most so many bytes are read in a second. */
  readonly bytesPerSecond: number;
  /** A round over all blobs begins at most so often. */
  readonly roundMs: number;
}

/** How often the position is written down: after a crash so much is read again. */
const noteEveryMs = 5_000;
/** Waiting less is not worth a timer. */
const leastWaitMs = 5;
const pageSize = 100;
const beforeAll: Digest = "sha256:";

/**
 * Reads every blob again, round after round, in the order of their digests, and not faster than it is told: bytes rot where
 * nobody reads them. Wrong ones put their assets into state error, right ones mend them. It goes on where it was.
 */
export class Scrubber {
  readonly #deps: ScrubberDeps;
  readonly #bytes: Counter;
  readonly #round: Gauge;
  #aheadBytes = 0;
  #countedAtMs = 0;

  constructor(deps: ScrubberDeps) {
    this.#deps = deps;
    this.#bytes = deps.metrics.counter("unkey_assets_scrubbed_bytes_total", "Bytes that the scrubber has read.");
    this.#round = deps.metrics.gauge("unkey_assets_scrub_round_started_seconds", "When the scrubber's round began.");
  }

  /** Finishes the round under way, or begins one when it is due. */
  async pass(signal: AbortSignal): Promise<void> {
    const { catalog, clock, log, roundMs } = this.#deps;
    let { after, startedAtMs } = await catalog.scrubPosition();
    if (after === "") {
      if (clock.nowMs() - startedAtMs < roundMs) return;
      startedAtMs = clock.nowMs();
      after = beforeAll;
      await catalog.setScrubPosition({ after, startedAtMs });
    }
    this.#round.set(startedAtMs / 1000);
    this.#countedAtMs = clock.nowMs();
    let notedAtMs = clock.nowMs();
    let wrong = 0;
    for (;;) {
      const page = await catalog.after(after, pageSize);
      for (const { digest, refs } of page) {
        signal.throwIfAborted();
        if (refs > 0 && !(await this.#isRight(digest, signal))) wrong += 1;
        after = digest;
        if (clock.nowMs() - notedAtMs < noteEveryMs) continue;
        notedAtMs = clock.nowMs();
        await catalog.setScrubPosition({ after, startedAtMs });
      }
      if (page.length === 0) break;
    }
    await catalog.setScrubPosition({ after: "", startedAtMs });
    log.info("all stored bytes were read again", { seconds: (clock.nowMs() - startedAtMs) / 1000, wrong });
  }

  async #isRight(digest: Digest, signal: AbortSignal): Promise<boolean> {
    try {
      await this.#deps.stored.verify(digest, signal, (bytes) => this.#pace(bytes, signal));
      return true;
    } catch (error) {
      // Noted and logged where it was found, unless the blob was swept meanwhile.
      if (isServiceError(error, "ASSET_CORRUPT")) return false;
      signal.throwIfAborted();
      this.#deps.log.warn("a blob could not be read again", { digest, error });
      return true;
    }
  }

  /** Waits until what was read so far has had its time. */
  async #pace(bytes: number, signal: AbortSignal): Promise<void> {
    const { clock, bytesPerSecond } = this.#deps;
    this.#bytes.inc({}, bytes);
    const nowMs = clock.nowMs();
    const allowance = ((nowMs - this.#countedAtMs) / 1000) * bytesPerSecond;
    this.#aheadBytes = Math.max(0, this.#aheadBytes - allowance) + bytes;
    this.#countedAtMs = nowMs;
    const waitMs = (this.#aheadBytes / bytesPerSecond) * 1000;
    if (waitMs >= leastWaitMs) await clock.sleep(waitMs, signal);
  }
}
