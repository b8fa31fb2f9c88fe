import { request } from "node:http";
import { connect } from "node:net";
import type { Probe, ProbeAnswer, ProbeTarget } from "../ports.ts";

/** Probes over the network: a TCP connection, or an HTTP request that must be answered below 500. */
export const networkProbe: Probe = (target, signal) =>
  target.httpPath === "" ? tcp(target, signal) : http(target, signal);

function tcp({ host, port, timeoutMs }: ProbeTarget, signal: AbortSignal): Promise<ProbeAnswer> {
  return new Promise((resolve) => {
    const socket = connect({ host, port, signal });
    const answer = (result: ProbeAnswer) => {
      socket.destroy();
      resolve(result);
    };
    socket.setTimeout(timeoutMs, () => answer({ healthy: false, because: "the connection was not answered" }));
    socket.once("connect", () => answer({ healthy: true }));
    socket.once("error", (error) => answer({ healthy: false, because: describe(error) }));
  });
}

function http({ host, port, httpPath, timeoutMs }: ProbeTarget, signal: AbortSignal): Promise<ProbeAnswer> {
  return new Promise((resolve) => {
    const outgoing = request({ host, port, path: httpPath, signal, agent: false, timeout: timeoutMs });
    const answer = (result: ProbeAnswer) => {
      outgoing.destroy();
      resolve(result);
    };
    outgoing.once("response", (incoming) => {
      const status = incoming.statusCode ?? 0;
      incoming.on("error", () => undefined).destroy();
      answer(status < 500 ? { healthy: true } : { healthy: false, because: `it answered with status ${status}` });
    });
    outgoing.once("timeout", () => answer({ healthy: false, because: "the request was not answered" }));
    outgoing.on("error", (error) => answer({ healthy: false, because: describe(error) }));
    outgoing.end();
  });
}

function describe(error: NodeJS.ErrnoException): string {
  if (error.code === "ECONNREFUSED") return "the connection was refused";
  return error.code ?? error.message;
}
