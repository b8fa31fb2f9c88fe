/** Asks for a collection pass from a thread of its own, so that reading the long answer does not disturb who measures. */
import { parentPort, workerData } from "node:worker_threads";
import { type Access, connect } from "./asset-daemon.ts";

await using stack = new AsyncDisposableStack();
const operator = connect(workerData as Access, stack);
await operator.getAsset({ assetId: "asset_00000000000000000000000000" }).catch(() => undefined); // connects
const startMs = performance.now();
const { markedCount, sweptCount, freedBytes } = await operator.collectGarbage({});
parentPort?.postMessage({
  seconds: (performance.now() - startMs) / 1000,
  marked: Number(markedCount),
  swept: Number(sweptCount),
  freedBytes,
});
