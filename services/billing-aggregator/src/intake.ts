import { type Clock, ServiceError } from "@unkey/base";
import type { Counter, Logger, Metrics } from "@unkey/daemon";
import { judgeWindows, type SetAside } from "./domain/check-window.ts";
import { type BatchEnvelope, openBatch } from "./domain/open-batch.ts";
import type { Inbox } from "./ports.ts";

export interface IntakeDeps {
  readonly inbox: Inbox;
  readonly clock: Clock;
  readonly log: Logger;
  readonly metrics: Metrics;
  /** Called when there is something new to project. */
  readonly onAccepted: () => void;
}

/** What became of a batch; it is durable, and need not be sent again. */
export interface Settlement {
  readonly outcome: "accepted" | "duplicate" | "quarantined";
  readonly detail: string;
}

const maxDetail = 500;

/** Takes batches. One that is settled is on disk. */
export class Intake {
  readonly #deps: IntakeDeps;
  readonly #batches: Counter;
  readonly #setAside: Counter;

  constructor(deps: IntakeDeps) {
    this.#deps = deps;
    this.#batches = deps.metrics.counter("unkey_billing_batches_total", "Batches by outcome.");
    this.#setAside = deps.metrics.counter("unkey_billing_windows_set_aside_total", "Windows that break an invariant.");
  }

  /** Throws BATCH_DAMAGED when the envelope and its content disagree, and INBOX_FULL. */
  async settle(envelope: BatchEnvelope): Promise<Settlement> {
    const settlement = await this.#settle(envelope);
    this.#batches.inc({ outcome: settlement.outcome });
    return settlement;
  }

  async #settle(envelope: BatchEnvelope): Promise<Settlement> {
    const { inbox, clock, onAccepted } = this.#deps;
    const nowMs = clock.nowMs();
    const opened = openBatch(envelope);
    if (opened.kind === "damaged") throw new ServiceError("BATCH_DAMAGED", `batch ${envelope.batchId}: ${opened.why}`);
    if (opened.kind === "invalid") return this.#quarantine(envelope, nowMs, opened.why);
    const { batch } = opened;
    const acceptance = await inbox.accept(envelope, batch, nowMs, (heads) =>
      judgeWindows(batch.windows, heads, { hostId: batch.hostId, nowMs }),
    );
    switch (acceptance.kind) {
      case "duplicate":
        return { outcome: "duplicate", detail: "" };
      case "conflict":
        return this.#quarantine(envelope, nowMs, "another batch was taken under its id");
      case "accepted":
        onAccepted();
        return this.#accepted(envelope.batchId, batch.windows.length, acceptance.setAside);
    }
  }

  async #quarantine(envelope: BatchEnvelope, nowMs: number, why: string): Promise<Settlement> {
    const { inbox, log } = this.#deps;
    await inbox.quarantine(envelope, nowMs, why);
    log.warn("batch quarantined", { batchId: envelope.batchId, why });
    return { outcome: "quarantined", detail: why };
  }

  #accepted(batchId: string, windows: number, setAside: readonly SetAside[]): Settlement {
    const [first] = setAside;
    if (first === undefined) return { outcome: "accepted", detail: "" };
    this.#setAside.inc({}, setAside.length);
    const detail = `${setAside.length} of ${windows} windows are set aside, window ${first.index}: ${first.why}`;
    this.#deps.log.warn("windows set aside", { batchId, windows, setAside: setAside.slice(0, 20) });
    return { outcome: "quarantined", detail: detail.slice(0, maxDetail) };
  }
}
