import { type Clock, newId } from "@unkey/base";
import type { Logger, Metrics } from "@unkey/daemon";
import { BoundedMap } from "../bounded-map.ts";
import type { AuditRecord } from "../domain/audit-chain.ts";
import type { AuditStore } from "../store/audit-store.ts";
import { RateLimiter } from "./rate-limiter.ts";

export type AuditEntry = Omit<AuditRecord, "eventId" | "atMs">;

const batchSize = 500;
/** When so many wait to be written, callers wait with them. */
const maxPending = 5000;
/** Rows written together cost one sync of the disk. */
const gatherMs = 20;
/** A read that the same key repeats within this time adds no row: polling would bury everything else. */
const readOnceMs = 60_000;
const maxReadsRemembered = 10_000;
/** Anybody on the network can be refused; that must not fill the disk. */
const strangers = { burst: 100, perSecond: 5 };

interface Pending {
  readonly record: AuditRecord;
  readonly written: PromiseWithResolvers<void>;
}

/** Writes audit records in batches. */
export class AuditLog implements AsyncDisposable {
  readonly #store: AuditStore;
  readonly #clock: Clock;
  readonly #log: Logger;
  readonly #reads = new BoundedMap<string, number>(maxReadsRemembered);
  readonly #strangers: RateLimiter;
  readonly #dropped;
  #unrecorded = 0;
  #pending: Pending[] = [];
  #writing: Promise<void> | undefined;

  constructor(deps: {
    readonly store: AuditStore;
    readonly clock: Clock;
    readonly log: Logger;
    readonly metrics: Metrics;
  }) {
    this.#store = deps.store;
    this.#clock = deps.clock;
    this.#log = deps.log;
    this.#strangers = new RateLimiter(strangers, deps.clock);
    this.#dropped = deps.metrics.counter(
      "unkey_audit_unrecorded_total",
      "Refused calls of strangers that got no audit row of their own.",
    );
  }

  /** A call that changed something or was refused; resolves when the record is durable. */
  async record(entry: AuditEntry): Promise<void> {
    if (entry.actor !== "") return this.#append(entry);
    if (!this.#strangers.take("").allowed) {
      this.#unrecorded += 1;
      this.#dropped.inc();
      return;
    }
    const more = this.#unrecorded;
    this.#unrecorded = 0;
    await this.#append(more === 0 ? entry : { ...entry, target: `${entry.target} (and ${more} unrecorded before)` });
  }

  /** A read that succeeded. */
  recordRead(entry: AuditEntry): void {
    const { actor, action, target } = entry;
    const name = `${actor} ${action} ${target}`;
    const nowMs = this.#clock.nowMs();
    if (nowMs - (this.#reads.get(name) ?? Number.NEGATIVE_INFINITY) < readOnceMs) return;
    this.#reads.set(name, nowMs);
    this.#append(entry).catch((error: unknown) => this.#log.error("an audit record was not written", { error }));
  }

  async #append(entry: AuditEntry): Promise<void> {
    while (this.#pending.length >= maxPending) await this.#flush();
    const nowMs = this.#clock.nowMs();
    const written = Promise.withResolvers<void>();
    this.#pending.push({ record: { ...entry, eventId: newId("evt", nowMs), atMs: nowMs }, written });
    void this.#flush();
    await written.promise;
  }

  #flush(): Promise<void> {
    return (this.#writing ??= this.#write().finally(() => {
      this.#writing = undefined;
      if (this.#pending.length > 0) void this.#flush();
    }));
  }

  async #write(): Promise<void> {
    await this.#clock.sleep(gatherMs);
    const batch = this.#pending.splice(0, batchSize);
    try {
      await this.#store.append(batch.map(({ record }) => record));
      for (const { written } of batch) written.resolve();
    } catch (error) {
      for (const { written } of batch) written.reject(error);
    }
  }

  /** Writes what still waits. */
  async [Symbol.asyncDispose](): Promise<void> {
    while (this.#pending.length > 0 || this.#writing) await this.#flush();
  }
}
