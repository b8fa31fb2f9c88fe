import { type Client, ConnectError, createClient } from "@connectrpc/connect";
import { createConnectTransport } from "@connectrpc/connect-node";
import { GatewayService } from "@unkey/api/gateway";
import { backoffDelayMs, type Clock } from "@unkey/base";
import { Interrupted } from "../failure.ts";
import { gatewayFailure, isConnectionTrouble, isNobodyThere } from "./gateway-errors.ts";
import { Http2Session } from "./http2-session.ts";
import type { Target } from "./target.ts";

const retries = 4;
const retryBackoff = { baseMs: 250, maxMs: 4000 };
/** Verbs of a VM answer when it has arrived, which takes a boot or a grace period. */
const unaryDeadlineMs = 180_000;
/** An answer larger than this is none of ours. */
const maxMessageBytes = 32 * 1024 * 1024;

/**
 * `once`: a repeat could do it twice. `repeatable`: a repeat is harmless, but when nobody is there at all the user wants
 * to know now. `patient`: worth waiting for a platform that restarts.
 */
export type Patience = "once" | "repeatable" | "patient";

/** The public API as one command uses it: authenticated, with failures that end in a next step. */
export class Gateway implements Disposable {
  readonly client: Client<typeof GatewayService>;
  readonly #session: Http2Session;
  readonly #target: Target;
  readonly #clock: Clock;
  readonly #signal: AbortSignal;

  constructor(target: Target, clock: Clock, signal: AbortSignal) {
    this.#target = target;
    this.#clock = clock;
    this.#signal = signal;
    this.#session = new Http2Session(target.url, target.caPem);
    const transport = createConnectTransport({
      baseUrl: target.url.origin,
      httpVersion: "2",
      sessionManager: this.#session,
      readMaxBytes: maxMessageBytes,
      interceptors: [
        (next) => (request) => {
          request.header.set("authorization", `Bearer ${target.apiKey}`);
          return next(request);
        },
      ],
    });
    this.client = createClient(GatewayService, transport);
  }

  get origin(): string {
    return this.#target.url.origin;
  }

  /** One call. It is sent again with backoff after a lost connection, where `patience` allows that. */
  async call<T>(
    call: (options: { signal: AbortSignal; timeoutMs: number }) => Promise<T>,
    patience: Patience = "repeatable",
  ): Promise<T> {
    for (let attempt = 0; ; attempt++) {
      try {
        return await call({ signal: this.#signal, timeoutMs: unaryDeadlineMs });
      } catch (error) {
        if (!this.#mayRetry(error, attempt, patience)) throw this.failure(error);
        await this.#pause(attempt);
      }
    }
  }

  /**
   * The messages of a stream that begins with what is known now, so that opening it again after a lost connection
   * misses nothing. Gives up after several tries in a row that brought no message.
   */
  async *follow<T>(open: (signal: AbortSignal) => AsyncIterable<T>): AsyncGenerator<T, void, undefined> {
    for (let attempt = 0; ; attempt++) {
      try {
        for await (const message of open(this.#signal)) {
          attempt = 0;
          yield message;
        }
        return;
      } catch (error) {
        if (!this.#mayRetry(error, attempt, "patient")) throw this.failure(error);
        await this.#pause(attempt);
      }
    }
  }

  /** The messages of a stream that cannot be opened twice without repeating itself. */
  async *stream<T>(open: (signal: AbortSignal) => AsyncIterable<T>): AsyncGenerator<T, void, undefined> {
    try {
      yield* open(this.#signal);
    } catch (error) {
      throw this.failure(error);
    }
  }

  /** What a caught error means to the user. */
  failure(error: unknown): unknown {
    if (this.#signal.aborted) return this.#signal.reason instanceof Error ? this.#signal.reason : new Interrupted();
    return error instanceof ConnectError ? gatewayFailure(error, this.origin, this.#target.caFile) : error;
  }

  #mayRetry(error: unknown, attempt: number, patience: Patience): boolean {
    if (attempt >= retries || this.#signal.aborted || patience === "once" || !isConnectionTrouble(error)) return false;
    return patience === "patient" || !isNobodyThere(error);
  }

  async #pause(attempt: number): Promise<void> {
    await this.#clock.sleep(backoffDelayMs(retryBackoff, attempt), this.#signal);
  }

  [Symbol.dispose](): void {
    this.#session[Symbol.dispose]();
  }
}
