import { type CallOptions, createContextKey, type HandlerContext } from "@connectrpc/connect";
import type { TenantId } from "@unkey/base";

/** For whom a call acts, as the gateway vouched for. */
export interface Principal {
  readonly tenantId: TenantId;
  /** The API key or user, for audit. */
  readonly subject: string;
  readonly roles: readonly string[];
  readonly requestId: string;
}

/** Who calls: the certificate's service, and the principal that it forwards. */
export interface CallIdentity {
  readonly service: string;
  readonly instance?: string;
  readonly principal?: Principal;
  /** The principal as it was signed; forwarded unchanged. */
  readonly principalToken?: string;
}

/** What a handler knows about its call. It travels explicitly to whatever the call leads to; see `callOptions`. */
export interface Caller {
  /** Name of the calling service. */
  readonly service: string;
  readonly instance?: string;
  /** Absent when a service calls for itself. */
  readonly tenantId?: TenantId;
  readonly subject?: string;
  readonly roles: readonly string[];
  readonly requestId: string;
  readonly principalToken?: string;
  /** Aborted by the caller's leaving, the deadline or the process's end, and once the call is over. */
  readonly signal: AbortSignal;
  /** What is left of the deadline, if there is one. */
  remainingMs(): number | undefined;
}

export const principalHeader = "unkey-principal";
export const requestIdHeader = "x-request-id";

export interface CallState {
  readonly requestId: string;
  readonly identity: CallIdentity;
  /** On performance.now()'s clock. */
  readonly deadlineAtMs?: number;
}

export const callStateKey = createContextKey<CallState | undefined>(undefined, { description: "who calls" });

/** Who calls the handler that `context` was given to. */
export function callerOf(context: Pick<HandlerContext, "values" | "signal">): Caller {
  const state = context.values.get(callStateKey);
  if (state === undefined) throw new Error("callerOf: this handler does not run behind the rpc pipeline");
  const { identity, requestId, deadlineAtMs } = state;
  const { service, instance, principal, principalToken } = identity;
  return {
    service,
    ...(instance === undefined ? {} : { instance }),
    ...(principal === undefined ? {} : { tenantId: principal.tenantId, subject: principal.subject }),
    roles: principal?.roles ?? [],
    requestId,
    ...(principalToken === undefined ? {} : { principalToken }),
    signal: context.signal,
    remainingMs: () => (deadlineAtMs === undefined ? undefined : Math.max(0, deadlineAtMs - performance.now())),
  };
}

export interface OutgoingCall {
  readonly signal?: AbortSignal;
  readonly timeoutMs?: number;
  readonly requestId?: string;
  readonly principalToken?: string;
}

/**
 * Options for a call that a call leads to: the caller's signal, what is left of its deadline, its request id and its
 * principal. A caller of one's own, without an incoming call, names what it has. `more` narrows further: its signal is
 * joined, the smaller timeout wins.
 */
export function callOptions(
  caller: Caller | OutgoingCall,
  more: Pick<OutgoingCall, "signal" | "timeoutMs"> = {},
): CallOptions {
  const remainingMs = "remainingMs" in caller ? caller.remainingMs() : caller.timeoutMs;
  const timeouts = [remainingMs, more.timeoutMs].filter((ms) => ms !== undefined);
  const signals = [caller.signal, more.signal].filter((signal) => signal !== undefined);
  const headers: Record<string, string> = {};
  if (caller.requestId !== undefined) headers[requestIdHeader] = caller.requestId;
  if (caller.principalToken !== undefined) headers[principalHeader] = caller.principalToken;
  return {
    headers,
    ...(signals.length === 0 ? {} : { signal: AbortSignal.any(signals) }),
    ...(timeouts.length === 0 ? {} : { timeoutMs: Math.max(1, Math.floor(Math.min(...timeouts))) }),
  };
}
