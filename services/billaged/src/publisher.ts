import { BatchOutcome } from "@unkey/api/billing";
import { type Backoff, backoffDelayMs, type Clock } from "@unkey/base";
import type { Logger } from "@unkey/daemon";
import type { EncodedBatch } from "./domain/batch-encoding.ts";
import type { BatchSink, MeterStore } from "./ports.ts";
import type { WakeUp } from "./wake-up.ts";

export interface PublisherDeps {
  readonly store: Pick<MeterStore, "pending">;
  readonly sink: BatchSink;
  readonly clock: Clock;
  readonly log: Logger;
  /** Called when there is something new to publish. */
  readonly news: WakeUp;
  /** A batch is settled and can be forgotten. */
  readonly onSettled: (batchId: string) => Promise<void>;
}

const backoff: Backoff = { baseMs: 200, maxMs: 60_000 };
/** Batches on the way at once. */
const maxInFlight = 8;

/**
 * Sends what is pending, in order, over one stream for as long as it lasts; after a failure again from the first that is not
 * settled, with growing pauses and for as many days as it takes. A batch is forgotten only when the other side has it.
 */
export class Publisher implements AsyncDisposable {
  readonly #deps: PublisherDeps;
  readonly #stop = new AbortController();
  readonly #running: Promise<void>;
  #failure: Error | undefined;

  constructor(deps: PublisherDeps) {
    this.#deps = deps;
    this.#running = this.#run();
  }

  /** Throws what the last attempt failed with, while none has succeeded since. */
  check(): void {
    if (this.#failure !== undefined) throw this.#failure;
  }

  async [Symbol.asyncDispose](): Promise<void> {
    this.#stop.abort();
    this.#deps.news.call();
    await this.#running;
  }

  async #run(): Promise<void> {
    const { clock, log } = this.#deps;
    const { signal } = this.#stop;
    for (let attempt = 0; !signal.aborted; attempt++) {
      const settled = await this.#stream().catch((error: unknown) => {
        if (!signal.aborted) {
          this.#failure = error instanceof Error ? error : new Error("delivery failed", { cause: error });
          log.warn("batches are not delivered yet", { attempt, error });
        }
        return 0;
      });
      if (settled > 0) attempt = 0;
      await clock.sleep(backoffDelayMs(backoff, attempt), signal).catch(() => undefined);
    }
  }

  /** One stream; yields how many batches it settled. */
  async #stream(): Promise<number> {
    const { sink, log, onSettled } = this.#deps;
    const end = new AbortController();
    const signal = AbortSignal.any([this.#stop.signal, end.signal]);
    const flow = { inFlight: 0 };
    let settled = 0;
    try {
      for await (const { batchId, outcome, detail } of sink.publish(this.#feed(flow, signal), signal)) {
        if (outcome === BatchOutcome.UNSPECIFIED) throw new Error(`batch ${batchId} was answered without an outcome`);
        if (outcome === BatchOutcome.QUARANTINED)
          log.error("a batch was put aside by its receiver", { batchId, detail });
        await onSettled(batchId);
        settled += 1;
        flow.inFlight -= 1;
        this.#failure = undefined;
        this.#deps.news.call();
      }
    } finally {
      end.abort();
      this.#deps.news.call();
    }
    return settled;
  }

  async *#feed(flow: { inFlight: number }, signal: AbortSignal): AsyncGenerator<EncodedBatch> {
    let sentSeq = 0;
    while (!signal.aborted) {
      const news = this.#deps.news.next;
      const room = maxInFlight - flow.inFlight;
      const batches = room > 0 ? await this.#deps.store.pending(sentSeq, room) : [];
      for (const batch of batches) {
        sentSeq = batch.seq;
        flow.inFlight += 1;
        yield batch;
        if (signal.aborted) return;
      }
      if (batches.length === 0) await news;
    }
  }
}
