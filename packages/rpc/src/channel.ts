import type { DescMethod, DescService } from "@bufbuild/protobuf";
import { MethodOptions_IdempotencyLevel } from "@bufbuild/protobuf/wkt";
import { type Client, createClient, type Transport } from "@connectrpc/connect";
import { createConnectTransport } from "@connectrpc/connect-node";
import { backoffDelayMs, type Clock, type ServiceError, systemClock } from "@unkey/base";
import type { Address, Metrics, ServiceName } from "@unkey/daemon";
import type { IdentitySource } from "@unkey/pki";
import { resolverOf } from "./address.ts";
import { fromCallError } from "./errors.ts";
import { SessionManager } from "./session-manager.ts";

export interface RpcChannelOptions {
  /** The service that must answer: its certificate is checked for this name. */
  readonly peer: ServiceName;
  readonly address: Address;
  readonly identity: IdentitySource;
  readonly metrics?: Metrics;
  readonly clock?: Clock;
  /** For unary calls that name no deadline. */
  readonly defaultTimeoutMs?: number;
  readonly maxMessageBytes?: number;
}

/** A connection to one peer, opened when it is first needed. Failed calls throw ServiceError. */
export interface RpcChannel extends AsyncDisposable {
  client<S extends DescService>(service: S): Client<S>;
  /** Throws DEPENDENCY_UNAVAILABLE when the peer does not answer: for health checks. */
  ping(): Promise<void>;
}

const closeGraceMs = 2000;

export function openRpcChannel(options: RpcChannelOptions): RpcChannel {
  const { peer, identity, maxMessageBytes = 4 * 1024 * 1024, defaultTimeoutMs = 30_000 } = options;
  const sessions = new SessionManager({ peer, identity, resolve: resolverOf(options.address, peer) });
  const transport = createConnectTransport({
    httpVersion: "2",
    baseUrl: sessions.authority,
    sessionManager: sessions,
    useBinaryFormat: true,
    acceptCompression: [],
    readMaxBytes: maxMessageBytes,
    writeMaxBytes: maxMessageBytes,
  });
  const reliable = serviceErrors(transport, { ...options, defaultTimeoutMs });
  return {
    client: (service) => createClient(service, reliable),
    ping: () => sessions.ping(),
    [Symbol.asyncDispose]: () => sessions.close(closeGraceMs),
  };
}

export interface CallPolicy {
  readonly peer: string;
  readonly defaultTimeoutMs?: number;
  readonly metrics?: Metrics;
  readonly clock?: Clock;
}

const maxAttempts = 3;
const retryBackoff = { baseMs: 50, maxMs: 1000 };

/**
 * Turns every failure of `transport` into a ServiceError, and repeats a unary call that the contract marks as
 * idempotent when the peer was unavailable. A call without that mark may have happened, so its caller decides.
 */
export function serviceErrors(transport: Transport, policy: CallPolicy): Transport {
  const { peer, clock = systemClock } = policy;
  const calls = policy.metrics?.counter("unkey_rpc_client_calls_total", "Outgoing calls by method and code.");
  const seconds = policy.metrics?.histogram("unkey_rpc_client_seconds", "Duration of outgoing calls by method.");
  const record = (method: DescMethod, code: string, startedAtMs: number) => {
    const name = `${method.parent.typeName}/${method.name}`;
    calls?.inc({ peer, method: name, code });
    seconds?.observe((performance.now() - startedAtMs) / 1000, { peer, method: name });
  };

  return {
    async unary(method, signal, timeoutMs = policy.defaultTimeoutMs, header, input, contextValues) {
      const startedAtMs = performance.now();
      for (let attempt = 1; ; attempt++) {
        const leftMs = timeoutMs === undefined ? undefined : remaining(timeoutMs, startedAtMs);
        try {
          const response = await transport.unary(method, signal, leftMs, header, input, contextValues);
          record(method, "ok", startedAtMs);
          return response;
        } catch (cause) {
          const error = fromCallError(cause, peer, signal);
          const delayMs = retryDelayMs(method, error, attempt);
          const inTime = leftMs === undefined || (delayMs ?? 0) < leftMs;
          if (delayMs === undefined || !inTime || signal?.aborted) {
            record(method, error.code, startedAtMs);
            throw error;
          }
          await clock.sleep(delayMs, signal).catch(() => {
            throw error;
          });
        }
      }
    },
    async stream(method, signal, timeoutMs, header, input, contextValues) {
      const startedAtMs = performance.now();
      const failed = (cause: unknown): ServiceError => {
        const error = fromCallError(cause, peer, signal);
        record(method, error.code, startedAtMs);
        return error;
      };
      try {
        const response = await transport.stream(method, signal, timeoutMs, header, input, contextValues);
        const done = () => record(method, "ok", startedAtMs);
        return { ...response, message: converted(response.message, done, failed) };
      } catch (cause) {
        throw failed(cause);
      }
    },
  };
}

/** Undefined when the call is not repeated. */
function retryDelayMs(method: DescMethod, error: ServiceError, attempt: number): number | undefined {
  const idempotent = method.idempotency !== MethodOptions_IdempotencyLevel.IDEMPOTENCY_UNKNOWN;
  if (!idempotent || error.code !== "unavailable" || attempt >= maxAttempts) return undefined;
  return backoffDelayMs(retryBackoff, attempt - 1);
}

async function* converted<T>(
  messages: AsyncIterable<T>,
  done: () => void,
  failed: (cause: unknown) => ServiceError,
): AsyncGenerator<T> {
  try {
    yield* messages;
    done();
  } catch (cause) {
    throw failed(cause);
  }
}

/** Whole milliseconds, because the wire knows no others; at least one, so that the call itself finds itself late. */
function remaining(timeoutMs: number, startedAtMs: number): number {
  return Math.max(1, Math.ceil(timeoutMs - (performance.now() - startedAtMs)));
}
