// The process that holds the engine. It is told what to do over the channel to its parent and dies with it.
import { once } from "node:events";
import type { AddressInfo } from "node:net";
import { ChdbEngine } from "./chdb-engine.ts";
import { createChdbHttpServer } from "./chdb-http.ts";
import type { ChdbAnswer, ChdbStart } from "./chdb-protocol.ts";
import { releaseLibraryPages } from "./library-pages.ts";

const drainMs = 5_000;
const idleMs = 2_000;

// The parent decides when the child ends: a Ctrl-C in the terminal reaches the whole group.
for (const signal of ["SIGINT", "SIGTERM"] as const) process.on(signal, () => undefined);

const parentGone = once(process, "disconnect");
const [start] = (await once(process, "message")) as [ChdbStart];
try {
  const engine = await ChdbEngine.open(start.dataDir);
  const server = createChdbHttpServer(engine, start.password);
  server.listen(0, "127.0.0.1");
  await once(server, "listening");
  tell({ kind: "listening", port: (server.address() as AddressInfo).port });
  const idle = setTimeout(() => void releaseLibraryPages("libchdb.so"), idleMs);
  server.on("request", () => idle.refresh());
  await parentGone;
  // A query may run for its whole time limit; the engine takes a kill without losing what it acknowledged.
  setTimeout(() => process.kill(process.pid, "SIGKILL"), drainMs).unref();
  clearTimeout(idle);
  server.close();
  server.closeIdleConnections();
  await engine[Symbol.asyncDispose]();
  process.exit(0);
} catch (error) {
  tell({ kind: "failed", message: error instanceof Error ? error.message : String(error) });
  process.exitCode = 1;
  process.disconnect?.();
}

function tell(answer: ChdbAnswer): void {
  process.send?.(answer);
}
