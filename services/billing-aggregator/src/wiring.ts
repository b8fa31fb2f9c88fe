import { join } from "node:path";
import { type Clock, systemClock } from "@unkey/base";
import { type ClickHouse, connectClickHouse, startChdb } from "@unkey/clickhouse";
import { type DaemonContext, everyMs, type Logger, lockDataDir } from "@unkey/daemon";
import { listenRpc, openIdentity } from "@unkey/rpc";
import { openSqlite } from "@unkey/sql";
import { ClickHouseUsageStore } from "./adapters/clickhouse-usage-store.ts";
import { SqlCursor } from "./adapters/sql-cursor.ts";
import { SqlInbox } from "./adapters/sql-inbox.ts";
import { SqlPriceBooks } from "./adapters/sql-price-books.ts";
import { migrations } from "./adapters/sql-schema.ts";
import { Billing } from "./billing.ts";
import type { Config } from "./config.ts";
import { defaultPriceBook } from "./domain/price-book.ts";
import { billingRoutes } from "./handlers.ts";
import { Intake } from "./intake.ts";
import { Projector } from "./projector.ts";

const pruneIntervalMs = 3_600_000;
/** A batch travels in one message: 4 MiB compressed, its hash and its name. */
const maxMessageBytes = 4 * 1024 * 1024 + 1024;

export async function startBillingAggregator(
  config: Config,
  context: DaemonContext,
  clock: Clock = systemClock,
): Promise<AsyncDisposable> {
  const { log, metrics, health } = context;
  await using stack = new AsyncDisposableStack();
  const identity = stack.use(openIdentity(config.rpc, context));
  stack.use(lockDataDir("billing-aggregator", config.dataDir));
  const sql = stack.use(await openSqlite({ path: join(config.dataDir, "billing.sqlite"), migrations }));
  const inbox = new SqlInbox(sql, { maxBytes: config.inboxMaxBytes });
  const books = await SqlPriceBooks.open(sql, defaultPriceBook);
  const clickHouse = stack.use(await openClickHouse(config, context));
  const store = new ClickHouseUsageStore(clickHouse);
  const projector = stack.use(new Projector({ inbox, cursor: new SqlCursor(sql), books, store, clock, log, metrics }));
  await projector.start();
  stack.use(
    everyMs(
      pruneIntervalMs,
      async () => void (await inbox.prune(projector.projectedSeq, clock.nowMs() - config.inboxRetentionMs)),
      { name: "prune inbox", log, atStart: true },
    ),
  );
  health.dependency("inbox", async () => void (await inbox.lastSeq()));
  health.dependency("usage-store", usageStoreCheck(store, projector));
  const intake = new Intake({ inbox, clock, log, metrics, onAccepted: () => projector.wake() });
  const billing = new Billing({ inbox, books, store, projector, clock });
  const server = stack.use(
    await listenRpc({
      ...config.rpc,
      routes: billingRoutes({ intake, billing, stopping: context.stopping }),
      identity,
      log,
      metrics,
      abort: context.abort,
      clock,
      maxMessageBytes,
    }),
  );
  context.announce("rpc", server.host, server.port);
  return stack.move();
}

async function openClickHouse({ clickHouse, dataDir }: Config, { log, health }: DaemonContext): Promise<ClickHouse> {
  if (clickHouse === undefined) {
    health.layer("clickhouse", { active: true, detail: "chDB in a child process" });
    return startEngine(join(dataDir, "clickhouse"), log);
  }
  health.layer("clickhouse", { active: true, detail: `server at ${clickHouse.url}` });
  return connectClickHouse({ ...clickHouse, password: clickHouse.password.reveal() });
}

const engineStartMs = 20_000;
const engineRetryMs = 500;

/**
 * Starts the engine. That of a predecessor which was killed may still end a query, and holds the folder while it does: so a
 * start that fails is tried again for a while.
 */
async function startEngine(dataDir: string, log: Logger): Promise<ClickHouse> {
  const deadlineMs = performance.now() + engineStartMs;
  for (;;) {
    try {
      return await startChdb({ dataDir, log });
    } catch (error) {
      if (performance.now() > deadlineMs) throw error;
      log.warn("the engine did not start; it is tried again", { error });
      await systemClock.sleep(engineRetryMs);
    }
  }
}

/** Between real work the engine sleeps with most of its memory given back; a monitor that polls must not keep it awake. */
const pingIntervalMs = 60_000;

function usageStoreCheck(store: ClickHouseUsageStore, projector: Projector): () => Promise<void> {
  let answeredAtMs = Number.NEGATIVE_INFINITY;
  return async () => {
    if (projector.failure !== undefined) throw new Error(`projection fails: ${projector.failure}`);
    if (performance.now() - answeredAtMs < pingIntervalMs) return;
    await store.ping();
    answeredAtMs = performance.now();
  };
}
