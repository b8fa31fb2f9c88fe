import { join } from "node:path";
import { MeteringService } from "@unkey/api/metering";
import { systemClock } from "@unkey/base";
import { type DaemonContext, everyMs, lockDataDir } from "@unkey/daemon";
import { listenRpc, openIdentity, openRpcChannel } from "@unkey/rpc";
import { DiskLogFolder } from "./adapters/disk-log-folder.ts";
import { RpcBatchSink } from "./adapters/rpc-batch-sink.ts";
import { SqlMeterStore } from "./adapters/sql-meter-store.ts";
import type { Config } from "./config.ts";
import { meteringHandlers } from "./handlers.ts";
import { Publisher } from "./publisher.ts";
import { MeterService } from "./service.ts";
import { WakeUp } from "./wake-up.ts";

const passIntervalMs = 1_000;
/** A compressed batch of the largest size, and its envelope. */
const maxMessageBytes = 5 * 1024 * 1024;

export async function startBillaged(config: Config, context: DaemonContext): Promise<AsyncDisposable> {
  const { log, metrics, health } = context;
  const clock = systemClock;
  await using stack = new AsyncDisposableStack(); // closes in reverse order, also when a later line throws
  const identity = stack.adopt(openIdentity(config.rpc, context), (source) => source[Symbol.dispose]());
  const channel = stack.use(
    openRpcChannel({ peer: "billing-aggregator", address: config.aggregator, identity, metrics, maxMessageBytes }),
  );
  stack.use(lockDataDir("billaged", config.dataDir));
  const folder = await DiskLogFolder.open(join(config.dataDir, "wal"));
  const store = stack.use(await SqlMeterStore.open(config.dataDir, clock.nowMs()));
  const news = new WakeUp();
  const { limitBytes, segmentBytes } = config;
  const service = stack.use(
    await MeterService.open({ folder, store, clock, log, metrics, limitBytes, segmentBytes, news }),
  );
  const sink = new RpcBatchSink(channel);
  const onSettled = (batchId: string) => service.settled(batchId);
  const publisher = stack.use(new Publisher({ store, sink, clock, log, news, onSettled }));
  // Not required: usage is kept for days while it cannot be delivered.
  health.dependency("billing-aggregator", () => publisher.check(), { required: false });
  stack.use(everyMs(passIntervalMs, () => service.pass(), { name: "meter", log }));
  const server = stack.use(
    await listenRpc({
      routes: (router) => router.service(MeteringService, meteringHandlers(service, context.stopping)),
      identity,
      host: config.rpc.host,
      port: config.rpc.port,
      log,
      metrics,
      abort: context.abort,
    }),
  );
  context.announce("rpc", server.host, server.port);
  return stack.move(); // everything is up: the caller owns it now
}
