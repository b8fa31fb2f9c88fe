import type { Client } from "@connectrpc/connect";
import { BatchOutcome, BillingService, type UsageReport as UsageReportMessage } from "@unkey/api/billing";
import { type Clock, systemClock, type TenantId } from "@unkey/base";
import type { ClickHouse } from "@unkey/clickhouse";
import { createLogger, Metrics } from "@unkey/daemon";
import { inMemoryClient } from "@unkey/rpc";
import { openSqlite, type Sql } from "@unkey/sql";
import { ClickHouseUsageStore } from "../../src/adapters/clickhouse-usage-store.ts";
import { SqlCursor } from "../../src/adapters/sql-cursor.ts";
import { SqlInbox } from "../../src/adapters/sql-inbox.ts";
import { SqlPriceBooks } from "../../src/adapters/sql-price-books.ts";
import { migrations } from "../../src/adapters/sql-schema.ts";
import { Billing } from "../../src/billing.ts";
import type { BatchEnvelope } from "../../src/domain/open-batch.ts";
import { defaultPriceBook } from "../../src/domain/price-book.ts";
import { billingRoutes } from "../../src/handlers.ts";
import { Intake } from "../../src/intake.ts";
import type { Cursor, UsageStore } from "../../src/ports.ts";
import { Projector } from "../../src/projector.ts";

export interface PipelineOptions {
  readonly clickHouse: ClickHouse;
  readonly sqlPath?: string;
  /** What the service takes for now; the real time otherwise. */
  readonly nowMs?: () => number;
  /** How long a question waits for the projector; a busy machine shall not change an answer. */
  readonly catchUpMs?: number;
  /** Stand between the projector and what it writes to. */
  readonly wrapStore?: (store: UsageStore) => UsageStore;
  readonly wrapCursor?: (cursor: Cursor) => Cursor;
}

export interface Pipeline extends AsyncDisposable {
  readonly sql: Sql;
  readonly inbox: SqlInbox;
  readonly projector: Projector;
  /** Calls as the named service, for a tenant when there is one. */
  client(service: string, tenantId?: string): Client<typeof BillingService>;
}

/** The service on real stores, without a socket: its RPCs are called through the same checks and encoding. */
export async function startPipeline(options: PipelineOptions): Promise<Pipeline> {
  const { clickHouse, sqlPath = ":memory:", wrapStore = (store) => store, wrapCursor = (cursor) => cursor } = options;
  const clock: Clock = { ...systemClock, nowMs: options.nowMs ?? (() => Date.now()) };
  const log = createLogger({ write: () => undefined });
  const metrics = new Metrics();
  await using stack = new AsyncDisposableStack();
  const sql = stack.use(await openSqlite({ path: sqlPath, migrations }));
  const inbox = new SqlInbox(sql, { maxBytes: 100_000_000 });
  const books = await SqlPriceBooks.open(sql, defaultPriceBook);
  const store = new ClickHouseUsageStore(clickHouse);
  const cursor = wrapCursor(new SqlCursor(sql));
  const projector = stack.use(new Projector({ inbox, cursor, books, store: wrapStore(store), clock, log, metrics }));
  await projector.start();
  const intake = new Intake({ inbox, clock, log, metrics, onAccepted: () => projector.wake() });
  const billing = new Billing({ inbox, books, store, projector, clock, catchUpMs: options.catchUpMs ?? 60_000 });
  const routes = billingRoutes({ intake, billing, stopping: new AbortController().signal });
  const owned = stack.move();
  return {
    sql,
    inbox,
    projector,
    client: (service, tenantId) =>
      inMemoryClient(BillingService, {
        routes,
        caller:
          tenantId === undefined
            ? { service }
            : {
                service,
                principal: { tenantId: tenantId as TenantId, subject: "key_1", roles: [], requestId: "req_1" },
              },
      }),
    [Symbol.asyncDispose]: () => owned.disposeAsync(),
  };
}

export function requestsOf(batches: Iterable<BatchEnvelope>) {
  return [...batches].map(({ batchId, zstd, bytes, sha256 }) => ({
    batchId,
    batchZstd: zstd,
    batchBytes: bytes,
    batchSha256: sha256,
  }));
}

const outcomeNames = new Map<BatchOutcome, string>(Object.entries(BatchOutcome).map(([name, value]) => [value, name]));

/** Sends batches over one stream; what became of each. */
export async function publish(
  client: Client<typeof BillingService>,
  batches: Iterable<BatchEnvelope>,
): Promise<{ readonly outcome: string | undefined; readonly detail: string }[]> {
  const requests = (async function* () {
    yield* requestsOf(batches);
  })();
  const settled = [];
  for await (const { outcome, detail } of client.publishBatches(requests)) {
    settled.push({ outcome: outcomeNames.get(outcome), detail });
  }
  return settled;
}

/** A report in a form that reads well and compares deeply; without the instants that depend on when it was asked. */
export function summary(report: UsageReportMessage) {
  const line = (each: UsageReportMessage["vms"][number]) => ({
    app: each.appId,
    vm: each.vmId,
    cpuTimeUs: each.quantities?.cpuTimeUs,
    memoryByteMs: each.quantities?.memoryByteMs,
    residentByteMs: each.quantities?.memoryResidentByteMs,
    diskByteMs: each.quantities?.diskByteMs,
    disk: [each.quantities?.diskReadBytes, each.quantities?.diskWriteBytes],
    net: [each.quantities?.netInBytes, each.quantities?.netOutBytes],
    meters: Object.fromEntries(each.meters.map(({ meter, quantity, amount }) => [meter, [quantity, amount?.amount]])),
    amount: `${each.amount?.amount} ${each.amount?.currency}`,
    samples: `${each.samplesSeen}/${each.samplesExpected}`,
    gaps: each.gaps.map(({ fromMs, toMs }) => [Number(fromMs), Number(toMs)]),
    covered: [Number(each.coveredFromMs), Number(each.coveredToMs)],
    complete: each.complete,
  });
  return {
    apps: report.apps.map(line),
    vms: report.vms.map(line),
    total: `${report.total?.amount} ${report.total?.currency}`,
    book: report.priceBookHash,
  };
}
