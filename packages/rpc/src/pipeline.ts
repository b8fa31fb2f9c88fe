import { randomFillSync } from "node:crypto";
import type { DescMethod, Message } from "@bufbuild/protobuf";
import type { ConnectError, HandlerContext, Interceptor, StreamRequest, UnaryRequest } from "@connectrpc/connect";
import { newId, ServiceError } from "@unkey/base";
import type { Logger, Metrics } from "@unkey/daemon";
import { type CallIdentity, callStateKey, requestIdHeader } from "./caller.ts";
import { toConnectError, toServiceError } from "./errors.ts";
import { tenantIdsIn } from "./tenant-fields.ts";
import { validate } from "./validation.ts";

export interface PipelineOptions {
  /** Who calls and for whom; throws ServiceError when the call is refused. Runs before the body is read. */
  readonly authenticate: (context: HandlerContext) => Promise<CallIdentity> | CallIdentity;
  readonly log: Logger;
  readonly metrics: Metrics;
  /** For a unary call that names no deadline. Streams without one have none. */
  readonly defaultTimeoutMs?: number;
  /** A caller that asks for more gets this. */
  readonly maxTimeoutMs?: number;
}

/** What stands between the wire and every handler, on a socket as in memory. */
export interface Pipeline {
  readonly requestGate: (context: HandlerContext) => Promise<void>;
  readonly interceptors: Interceptor[];
  /** Logs, counts and converts an error of a call that never reached a handler. */
  readonly refuse: (method: DescMethod, error: unknown, requestId?: string) => ConnectError;
}

/** Lines a second about callers that nobody knows: whoever can connect must not be able to flood the log. */
const strangersPerSecond = 10;

const requestIdPattern = /^[A-Za-z0-9_.-]{1,128}$/;

/** The caller's request id when it is well-formed, else a new one. */
export function requestIdOf(headers: Headers): string {
  const given = headers.get(requestIdHeader);
  return given !== null && requestIdPattern.test(given) ? given : newRequestId();
}

const pool = new Uint8Array(4000);
let poolUsed = pool.length;

/** Draws from a pool: asking the system for ten bytes with each call cost a twentieth of the server's time. */
function newRequestId(): string {
  return newId("req", Date.now(), (count) => {
    if (poolUsed + count > pool.length) {
      randomFillSync(pool);
      poolUsed = 0;
    }
    poolUsed += count;
    return pool.subarray(poolUsed - count, poolUsed);
  });
}

export function createPipeline(options: PipelineOptions): Pipeline {
  const { log, metrics, defaultTimeoutMs = 30_000, maxTimeoutMs = 15 * 60_000 } = options;
  const calls = metrics.counter("unkey_rpc_server_calls_total", "Calls by method and code.");
  const seconds = metrics.histogram("unkey_rpc_server_seconds", "Duration of calls by method.");

  const mayNoteStranger = atMostPerSecond(strangersPerSecond);

  const record = (method: DescMethod, code: string, startedAtMs: number) => {
    const name = `${method.parent.typeName}/${method.name}`;
    calls.inc({ method: name, code });
    seconds.observe((performance.now() - startedAtMs) / 1000, { method: name });
  };

  const fail = (method: DescMethod, error: ServiceError, requestId: string, startedAtMs: number) => {
    record(method, error.code, startedAtMs);
    const level = levelOf(error);
    if (log.enabled(level) && (error.code !== "unauthenticated" || mayNoteStranger())) {
      log[level]("call failed", {
        rpc: `${method.parent.typeName}/${method.name}`,
        requestId,
        code: error.code,
        error,
      });
    }
    return toConnectError(error);
  };

  const requestGate = async (context: HandlerContext) => {
    const startedAtMs = performance.now();
    const requestId = requestIdOf(context.requestHeader);
    context.responseHeader.set(requestIdHeader, requestId);
    try {
      const identity = await options.authenticate(context);
      const asked = context.timeoutMs() ?? (context.method.methodKind === "unary" ? defaultTimeoutMs : undefined);
      const timeoutMs = asked === undefined ? undefined : Math.min(asked, maxTimeoutMs);
      context.values.set(callStateKey, {
        requestId: identity.principal?.requestId ?? requestId,
        identity,
        ...(timeoutMs === undefined ? {} : { deadlineAtMs: startedAtMs + timeoutMs }),
      });
    } catch (error) {
      throw fail(context.method, toServiceError(error, undefined, requestId), requestId, startedAtMs);
    }
  };

  const serve: Interceptor = (next) => async (request) => {
    const startedAtMs = performance.now();
    const { method, contextValues } = request;
    const state = contextValues.get(callStateKey);
    if (state === undefined) throw new Error("a call passed the gate unseen");
    const deadline = startDeadline(state.deadlineAtMs);
    const signal = AbortSignal.any([request.signal, deadline.signal]);
    const failed = (error: unknown) => {
      deadline[Symbol.dispose]();
      return fail(method, toServiceError(error, signal, state.requestId), state.requestId, startedAtMs);
    };
    try {
      const tenantId = state.identity.principal?.tenantId;
      const response = await next(await guardRequest({ ...request, signal }, tenantId));
      if (response.stream) {
        const done = (code: string) => {
          deadline[Symbol.dispose]();
          record(method, code, startedAtMs);
        };
        return { ...response, message: observe(response.message, done, failed) };
      }
      deadline[Symbol.dispose]();
      record(method, "ok", startedAtMs);
      return response;
    } catch (error) {
      throw failed(error);
    }
  };

  return {
    requestGate,
    interceptors: [serve],
    refuse: (method, error, requestId = newRequestId()) =>
      fail(method, toServiceError(error, undefined, requestId), requestId, performance.now()),
  };
}

/** Every message that comes in is valid and names no tenant but the principal's. */
async function guardRequest(
  request: UnaryRequest | StreamRequest,
  tenantId: string | undefined,
): Promise<UnaryRequest | StreamRequest> {
  const schema = request.method.input;
  const check = async (message: Message) => {
    await validate(schema, message);
    if (tenantId === undefined) return;
    const other = tenantIdsIn(schema, message).find((named) => named !== tenantId);
    if (other !== undefined) {
      throw new ServiceError(
        "TENANT_MISMATCH",
        `the request names tenant "${other.slice(0, 64)}", the caller acts for ${tenantId}`,
      );
    }
  };
  if (!request.stream) {
    await check(request.message);
    return request;
  }
  return { ...request, message: checked(request.message, check) };
}

async function* checked<T extends Message>(messages: AsyncIterable<T>, check: (message: T) => Promise<void>) {
  for await (const message of messages) {
    await check(message);
    yield message;
  }
}

/** Passes a response stream on and tells once how it ended; a client that leaves early ends it with `canceled`. */
async function* observe<T>(
  messages: AsyncIterable<T>,
  done: (code: string) => void,
  failed: (error: unknown) => ConnectError,
): AsyncGenerator<T> {
  let told = false;
  try {
    yield* messages;
    told = true;
    done("ok");
  } catch (error) {
    told = true;
    throw failed(error);
  } finally {
    if (!told) done("canceled");
  }
}

function startDeadline(deadlineAtMs: number | undefined): Disposable & { readonly signal: AbortSignal } {
  const controller = new AbortController();
  if (deadlineAtMs === undefined) return { signal: controller.signal, [Symbol.dispose]: () => undefined };
  const timer = setTimeout(
    () => controller.abort(new ServiceError("DEADLINE_EXCEEDED", "the call's deadline passed before it was done")),
    deadlineAtMs - performance.now(),
  );
  return { signal: controller.signal, [Symbol.dispose]: () => clearTimeout(timer) };
}

/** Ours to fix is an error, a sick neighbour or a locked door a warning, the caller's own mistake a detail. */
function atMostPerSecond(most: number): () => boolean {
  let second = 0;
  let count = 0;
  return () => {
    const now = Math.floor(performance.now() / 1000);
    if (now !== second) [second, count] = [now, 0];
    return ++count <= most;
  };
}

function levelOf(error: ServiceError): "error" | "warn" | "debug" {
  switch (error.code) {
    case "internal":
    case "data_loss":
    case "unknown":
      return "error";
    case "unavailable":
    case "unauthenticated":
    case "permission_denied":
    case "deadline_exceeded":
      return "warn";
    default:
      return "debug";
  }
}
