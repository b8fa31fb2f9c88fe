import { createHash } from "node:crypto";
import { type Clock, ServiceError } from "@unkey/base";
import { monthStartMs, type Period, segmentsOf, widenPeriod } from "./domain/period.ts";
import { faultOfTerms, type PriceBook, type PriceBookTerms, sealPriceBook } from "./domain/price-book.ts";
import { reportUsage, type UsageReport } from "./domain/usage-report.ts";
import type { Inbox, PriceBookStore, StoredRecord, UsageQuery, UsageStore } from "./ports.ts";
import type { Projector } from "./projector.ts";

export interface BillingDeps {
  readonly inbox: Inbox;
  readonly books: PriceBookStore;
  readonly store: UsageStore;
  readonly projector: Pick<Projector, "caughtUp" | "visibleSeq">;
  readonly clock: Clock;
  /** How long a question waits for batches that were taken just before it; then it is answered as of before them. */
  readonly catchUpMs?: number;
}

/** `toMs` 0 stands for now. */
export interface UsageQuestion extends UsageQuery, Period {}

export interface UsageAnswer {
  readonly report: UsageReport;
  /** Everything up to this instant is in. */
  readonly asOfMs: number;
}

const defaultCatchUpMs = 2_000;
/** A host that was silent for longer says nothing about now; its open series still do. */
const aliveMs = 5 * 60_000;
const maxGaps = 5_000;
const recordsPerPage = 500;

/** Answers for usage, and keeps the price books. */
export class Billing {
  readonly #deps: BillingDeps;

  constructor(deps: BillingDeps) {
    this.#deps = deps;
  }

  /** `fromMs` 0 stands for the beginning of the month in UTC. Throws INVALID_REQUEST, USAGE_SPANS_CURRENCIES, USAGE_TOO_LARGE and DEPENDENCY_UNAVAILABLE. */
  async usage(question: UsageQuestion): Promise<UsageAnswer> {
    const { store, books, clock } = this.#deps;
    const nowMs = clock.nowMs();
    const period = periodOf({ ...question, fromMs: question.fromMs || monthStartMs(nowMs) }, nowMs);
    const asOfMs = await this.#asOf(question, period, nowMs);
    const answers = await Promise.all([
      Promise.all(segmentsOf(period).map((segment) => store.units(question, segment))),
      store.gaps(question, period, maxGaps),
      books.list(),
    ]);
    const [units, gaps, known] = answers;
    return { report: reportUsage({ period, units: units.flat(), gaps, books: known }), asOfMs };
  }

  /** The windows of a VM as they were received. Throws DATA_LOSS when one is not what it was. */
  async *windows(question: UsageQuestion, signal: AbortSignal): AsyncGenerator<StoredRecord> {
    const { store, inbox, projector, clock } = this.#deps;
    const nowMs = clock.nowMs();
    const period = periodOf(question, nowMs);
    await projector.caughtUp(await inbox.lastSeq(), this.#deps.catchUpMs ?? defaultCatchUpMs);
    let after: StoredRecord | undefined;
    do {
      signal.throwIfAborted();
      const page: StoredRecord[] = await store.records(question, period, after, recordsPerPage);
      for (const stored of page) {
        if (createHash("sha256").update(stored.record).digest("hex") !== stored.hash) {
          throw new ServiceError("DATA_LOSS", "a stored window does not have its hash", {
            metadata: { startMs: `${stored.startMs}`, vmId: question.vmId },
          });
        }
        yield stored;
      }
      after = page.length === recordsPerPage ? page.at(-1) : undefined;
    } while (after !== undefined);
  }

  /** Adds a book, or answers the same one when it is there. Throws PRICE_BOOK_INVALID and PRICE_BOOK_EXISTS. */
  async putPriceBook(terms: PriceBookTerms): Promise<PriceBook> {
    const { books, clock } = this.#deps;
    const book = sealPriceBook(terms);
    const same = (await books.list()).find(({ id, hash }) => id === book.id && hash === book.hash);
    if (same !== undefined) return same; // also when it has become effective since
    const fault = faultOfTerms(terms, clock.nowMs());
    if (fault !== undefined) throw new ServiceError("PRICE_BOOK_INVALID", fault);
    const { added, book: kept } = await books.add(book);
    if (added || kept.hash === book.hash) return kept;
    throw new ServiceError(
      "PRICE_BOOK_EXISTS",
      kept.id === book.id ? `${book.id} exists with other terms` : `${kept.id} takes effect at the same instant`,
    );
  }

  priceBooks(): Promise<PriceBook[]> {
    return this.#deps.books.list();
  }

  /** Waits for what was taken before the question, then says how far that reaches. */
  async #asOf(query: UsageQuery, period: Period, nowMs: number): Promise<number> {
    const { inbox, projector } = this.#deps;
    await projector.caughtUp(await inbox.lastSeq(), this.#deps.catchUpMs ?? defaultCatchUpMs);
    const { tenantId, appId, vmId } = query;
    const { openSeriesMs, hostsMs, unprojectedMs } = await inbox.progress({
      tenantId,
      appId,
      vmId,
      aliveSinceMs: nowMs - aliveMs,
      afterSeq: projector.visibleSeq,
    });
    const limits = [nowMs, period.toMs, openSeriesMs, hostsMs, unprojectedMs];
    return Math.min(...limits.filter((limit) => limit !== undefined));
  }
}

function periodOf({ fromMs, toMs }: Period, nowMs: number): Period {
  const asked = { fromMs, toMs: toMs === 0 ? nowMs : toMs };
  const valid = asked.fromMs >= 0 && asked.toMs > asked.fromMs && asked.toMs <= maxInstantMs;
  if (!valid) throw new ServiceError("INVALID_REQUEST", "to_ms: not after from_ms, or not an instant of this century");
  return widenPeriod(asked, nowMs);
}

/** The engine's instants have 32 bits of seconds. */
const maxInstantMs = 4_102_444_800_000;
