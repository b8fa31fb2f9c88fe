import { type DescMethod, getOption, hasOption, type Message } from "@bufbuild/protobuf";
import { MethodOptions_IdempotencyLevel } from "@bufbuild/protobuf/wkt";
import { ConnectError, createContextKey, type HandlerContext, type Interceptor } from "@connectrpc/connect";
import { ErrorInfoSchema } from "@unkey/api/common";
import { scope } from "@unkey/api/options";
import { newId, ServiceError } from "@unkey/base";
import type { Logger, Metrics } from "@unkey/daemon";
import { createPipeline, type Pipeline, requestIdHeader } from "@unkey/rpc";
import { scopeAllows } from "../domain/scopes.ts";
import type { ApiKeyRow } from "../store/key-store.ts";
import type { AuditLog } from "./audit-log.ts";
import type { Keyring } from "./keyring.ts";
import { type RateLimiter, rateLimitHeaders } from "./rate-limiter.ts";

/** Verbs that boot or stop guests answer when it is done. */
const defaultTimeoutMs = 180_000;
const maxTimeoutMs = 15 * 60_000;
/** Streams stay, so the rate of requests does not bound them; each costs a look at the database now and then. */
const maxStreamsPerTenant = 256;

interface Admitted {
  readonly key: ApiKeyRow;
  readonly requestId: string;
}

const admittedKey = createContextKey<Admitted | undefined>(undefined, { description: "admitted call" });

export interface PolicyDeps {
  readonly keyring: Keyring;
  readonly limiter: RateLimiter;
  readonly audit: AuditLog;
  readonly log: Logger;
  readonly metrics: Metrics;
  /** Ends streams that would go on for ever when the daemon stops. */
  readonly stopping: AbortSignal;
}

/**
 * What every call of the public API passes, whatever its protocol, in this order. Before the body is read: request id
 * and deadline, authenticate, authorize, rate limit. After: validate, handler, audit.
 */
export function createPolicies(deps: PolicyDeps): Pipeline {
  const { keyring, limiter, audit, log, metrics } = deps;
  const stopping = withReason(deps.stopping, new ServiceError("SHUTTING_DOWN", "the gateway is stopping"));
  const pipeline = createPipeline({
    log,
    metrics,
    defaultTimeoutMs,
    maxTimeoutMs,
    authenticate: async (context) => {
      const { requestHeader, responseHeader, method, values } = context;
      const requestId = responseHeader.get(requestIdHeader) ?? newId("req");
      const key = await keyring.identify(requestHeader.get("authorization"));
      values.set(admittedKey, { key, requestId });
      authorize(method, key);
      const decision = limiter.take(key.apiKeyId);
      for (const [name, value] of rateLimitHeaders(limiter.limit, decision)) responseHeader.set(name, value);
      if (!decision.allowed) {
        throw new ServiceError(
          "RATE_LIMITED",
          `the API key is limited to ${limiter.limit.perSecond} requests a second`,
        );
      }
      const { tenantId, apiKeyId, scopes } = key;
      return { service: "api", principal: { tenantId, subject: apiKeyId, roles: scopes, requestId } };
    },
  });

  const record = async (
    method: DescMethod,
    admitted: Admitted | undefined,
    target: string,
    outcome: string,
    requestId: string,
  ) => {
    const entry = {
      tenantId: admitted?.key.tenantId ?? "",
      actor: admitted?.key.apiKeyId ?? "",
      action: method.name,
      target,
      outcome,
      requestId,
    };
    const isRead = method.idempotency === MethodOptions_IdempotencyLevel.NO_SIDE_EFFECTS;
    if (isRead && outcome === "ok") audit.recordRead(entry);
    else await audit.record(entry).catch((error: unknown) => log.error("an audit record was not written", { error }));
  };

  const requestGate = async (context: HandlerContext) => {
    try {
      await pipeline.requestGate(context);
    } catch (error) {
      const requestId = context.responseHeader.get(requestIdHeader) ?? "";
      const outcome = outcomeOf(error);
      if (outcome === "UNAUTHENTICATED") context.responseHeader.set("www-authenticate", "Bearer");
      await record(context.method, context.values.get(admittedKey), "", outcome, requestId);
      throw error;
    }
  };

  const audited: Interceptor = (next) => async (request) => {
    const { method, contextValues } = request;
    const admitted = contextValues.get(admittedKey);
    if (!admitted) throw new Error("a call passed the gate unseen");
    const { requestId } = admitted;
    if (!request.stream) {
      try {
        const response = await next(request);
        await record(method, admitted, targetOf(request.message), "ok", requestId);
        return response;
      } catch (error) {
        await record(method, admitted, targetOf(request.message), outcomeOf(error), requestId);
        throw error;
      }
    }
    if (keyring.streamsOf(admitted.key.tenantId) >= maxStreamsPerTenant) {
      const refusal = new ServiceError("TOO_MANY_STREAMS", `the tenant has ${maxStreamsPerTenant} streams open`);
      await record(method, admitted, "", refusal.reason, requestId);
      throw pipeline.refuse(method, refusal, requestId);
    }
    const inForce = keyring.whileInForce(admitted.key);
    let target = "";
    const end = async (outcome: string) => {
      inForce[Symbol.dispose]();
      await record(method, admitted, target, outcome, requestId);
    };
    try {
      const response = await next({
        ...request,
        signal: AbortSignal.any([
          request.signal,
          inForce.signal,
          ...(method.methodKind === "server_streaming" ? [stopping] : []),
        ]),
        message: onFirst(request.message, (message) => (target = targetOf(message))),
      });
      if (!response.stream) throw new Error(`${method.name} answered a stream with a message`);
      return { ...response, message: untilEnd(response.message, end) };
    } catch (error) {
      await end(outcomeOf(error));
      throw error;
    }
  };

  return { ...pipeline, requestGate, interceptors: [audited, ...pipeline.interceptors] };
}

/** The scopes that methods of the public API ask for. */
export function scopeOf(method: DescMethod): string | undefined {
  return hasOption(method, scope) ? getOption(method, scope) : undefined;
}

function authorize(method: DescMethod, key: ApiKeyRow): void {
  const needed = scopeOf(method);
  if (!needed)
    throw new ServiceError("PERMISSION_DENIED", `${method.name} does not declare its scope, so nobody may call it`);
  if (!scopeAllows(key.scopes, needed)) {
    throw new ServiceError("SCOPE_MISSING", `the API key lacks the scope ${needed}`, { metadata: { scope: needed } });
  }
}

/** `ok`'s opposite: the reason that the caller was told. */
function outcomeOf(error: unknown): string {
  const connect = ConnectError.from(error);
  return connect.findDetails(ErrorInfoSchema)[0]?.reason ?? "INTERNAL";
}

function withReason(signal: AbortSignal, reason: ServiceError): AbortSignal {
  const controller = new AbortController();
  signal.addEventListener("abort", () => controller.abort(reason), { once: true });
  return controller.signal;
}

const targetFields = ["deploymentId", "vmId", "apiKeyId", "buildId", "invoiceId", "app", "name"];

/** What a request is about: the first of the naming fields that it fills. */
function targetOf(message: Message): string {
  const fields = message as unknown as Record<string, unknown>;
  const value = targetFields.map((name) => fields[name]).find((each) => typeof each === "string" && each !== "");
  return typeof value === "string" ? value.slice(0, 128) : "";
}

async function* onFirst<T>(values: AsyncIterable<T>, tell: (value: T) => void): AsyncGenerator<T> {
  let first = true;
  for await (const value of values) {
    if (first) tell(value);
    first = false;
    yield value;
  }
}

async function* untilEnd<T>(values: AsyncIterable<T>, end: (outcome: string) => Promise<void>): AsyncGenerator<T> {
  // A client that leaves early has seen what it wanted.
  let outcome = "ok";
  try {
    yield* values;
  } catch (error) {
    outcome = outcomeOf(error);
    throw error;
  } finally {
    await end(outcome);
  }
}
