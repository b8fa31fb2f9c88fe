import { isIPv6 } from "node:net";
import type { Duplex } from "node:stream";
import { Pool } from "undici";

/** Requests at once per VM; more are refused rather than queued without end. */
const maxRunning = 1024;
const maxConnections = 256;
const connectTimeoutMs = 2000;
/** Until the app's answer begins. */
const headersTimeoutMs = 120_000;
/** Between two pieces of the answer; event streams may be quiet for long. */
const bodyTimeoutMs = 15 * 60_000;
const maxHeaderBytes = 64 * 1024;
/** Shorter than what common servers keep an idle connection for, so that we close first. */
const keepAliveMs = 4000;
/** After a refused connection other VMs are preferred for so long. */
const suspectMs = 5000;

/** One VM that requests are sent to. */
export class Upstream {
  readonly vmId: string;
  readonly host: string;
  readonly port: number;
  readonly pool: Pool;
  #running = 0;
  #suspectUntilMs = 0;
  #idle: (() => void) | undefined;
  readonly #sockets = new Set<Duplex>();

  constructor(vmId: string, host: string, port: number) {
    this.vmId = vmId;
    this.host = host;
    this.port = port;
    this.pool = new Pool(`http://${isIPv6(host) ? `[${host}]` : host}:${port}`, {
      connections: maxConnections,
      pipelining: 1,
      connect: { timeout: connectTimeoutMs },
      headersTimeout: headersTimeoutMs,
      bodyTimeout: bodyTimeoutMs,
      keepAliveTimeout: keepAliveMs,
      maxHeaderSize: maxHeaderBytes,
    });
  }

  get running(): number {
    return this.#running;
  }

  get full(): boolean {
    return this.#running >= maxRunning;
  }

  isSuspect(nowMs: number): boolean {
    return nowMs < this.#suspectUntilMs;
  }

  suspect(nowMs: number): void {
    this.#suspectUntilMs = nowMs + suspectMs;
  }

  /** Counts a request in; call the answer once when it is over. */
  enter(): () => void {
    this.#running += 1;
    let left = false;
    return () => {
      if (left) return;
      left = true;
      this.#running -= 1;
      if (this.#running === 0) this.#idle?.();
    };
  }

  /** An upgraded connection: it ends with the VM. */
  adopt(socket: Duplex): void {
    this.#sockets.add(socket);
    socket.once("close", () => this.#sockets.delete(socket));
  }

  /** Waits for running requests, at most `withinMs`, then closes every connection. */
  async retire(withinMs: number, signal: AbortSignal): Promise<void> {
    if (this.#running > 0 && !signal.aborted) {
      const done = Promise.withResolvers<void>();
      const finish = () => done.resolve();
      this.#idle = finish;
      const timer = setTimeout(finish, withinMs);
      signal.addEventListener("abort", finish, { once: true });
      await done.promise;
      clearTimeout(timer);
      signal.removeEventListener("abort", finish);
    }
    for (const socket of this.#sockets) socket.destroy();
    await this.pool.destroy().catch(() => undefined);
  }
}
