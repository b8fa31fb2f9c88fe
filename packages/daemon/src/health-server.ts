import { createServer, type RequestListener } from "node:http";
import type { AddressInfo } from "node:net";
import type { Health } from "./health.ts";
import type { Metrics } from "./metrics.ts";

export interface HealthServer extends AsyncDisposable {
  /** `127.0.0.1:<port>`. */
  readonly address: string;
}

/** Serves `/health`, `/ready` and `/metrics` on loopback only: they are not authenticated. */
export async function listenHealth(port: number, health: Health, metrics: Metrics): Promise<HealthServer> {
  const server = createServer(
    { headersTimeout: 5000, requestTimeout: 5000, maxHeaderSize: 8192, keepAliveTimeout: 5000 },
    answer(health, metrics),
  );
  server.maxConnections = 64;
  const listening = Promise.withResolvers<void>();
  server.once("error", listening.reject);
  server.listen({ host: "127.0.0.1", port }, listening.resolve);
  await listening.promise;
  // A daemon outlives a client's broken connection.
  server.on("error", () => undefined);
  return {
    address: `127.0.0.1:${(server.address() as AddressInfo).port}`,
    [Symbol.asyncDispose]: async () => {
      const closed = Promise.withResolvers<void>();
      server.close(() => closed.resolve());
      server.closeAllConnections();
      await closed.promise;
    },
  };
}

function answer(health: Health, metrics: Metrics): RequestListener {
  return (request, response) => {
    const send = (status: number, type: string, body: string) => {
      response.writeHead(status, { "content-type": type, "cache-control": "no-store" });
      response.end(request.method === "HEAD" ? undefined : body);
    };
    const sendReport = async (statusOf: (ready: boolean) => number) => {
      const report = await health.report();
      send(statusOf(report.ready), "application/json", `${JSON.stringify(report, undefined, 2)}\n`);
    };
    const path = request.url?.split("?")[0];
    if (request.method !== "GET" && request.method !== "HEAD") {
      send(405, "text/plain", "only GET\n");
    } else if (path === "/health") {
      // 200 as long as the process answers: a restart cures no dependency.
      void sendReport(() => 200);
    } else if (path === "/ready") {
      void sendReport((ready) => (ready ? 200 : 503));
    } else if (path === "/metrics") {
      send(200, "text/plain; version=0.0.4; charset=utf-8", metrics.render());
    } else {
      send(404, "text/plain", "there is /health, /ready and /metrics\n");
    }
  };
}
