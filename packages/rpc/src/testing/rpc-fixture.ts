import assert from "node:assert/strict";
import { mkdtempSync, rmSync } from "node:fs";
import type { connect as connectHttp2 } from "node:http2";
import { connect as connectTcp } from "node:net";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterEach, beforeEach } from "node:test";
import type { ConnectRouter } from "@connectrpc/connect";
import { AssetService } from "@unkey/api/asset";
import { type Clock, type ErrorReason, isServiceError, newId, ServiceError, systemClock } from "@unkey/base";
import { createLogger, Metrics } from "@unkey/daemon";
import { Authority, ensureIdentity, IdentitySource } from "@unkey/pki";
import {
  callerOf,
  type ListenRpcOptions,
  listenRpc,
  mintPrincipal,
  openRpcChannel,
  type RpcChannelOptions,
} from "../index.ts";

/** An authority, servers and channels over real sockets for the tests of this package. */
export const hourMs = 3_600_000;
export const trustDomain = "unkey.test";
export const tenantId = newId("tenant");
export const assetId = newId("asset");

export let dir = "";
export let authority: Authority;
export let stack = new AsyncDisposableStack();
export let lines: Record<string, unknown>[] = [];
export const log = createLogger({
  level: "trace",
  write: (line) => lines.push(JSON.parse(line) as Record<string, unknown>),
});

beforeEach(() => {
  dir = mkdtempSync(join(tmpdir(), "rpc-"));
  authority = Authority.open(join(dir, "ca"), { commonName: "Test" });
  stack = new AsyncDisposableStack();
  lines = [];
});
afterEach(async () => {
  await stack.disposeAsync();
  rmSync(dir, { recursive: true, force: true });
});

export function identityOf(
  service: string,
  options: { readonly by?: Authority; readonly clock?: Clock; readonly domain?: string } = {},
) {
  const path = join(dir, `${service}-${Math.random().toString(36).slice(2)}`);
  const { clock = systemClock } = options;
  ensureIdentity(options.by ?? authority, path, { id: { trustDomain: options.domain ?? trustDomain, service } }, clock);
  return { path, source: stack.use(IdentitySource.open(path, { clock })) };
}

export interface Handlers {
  readonly routes: (router: ConnectRouter) => void;
  readonly seen: unknown[];
  readonly started: PromiseWithResolvers<void>;
  readonly release: PromiseWithResolvers<void>;
}

/** assetmanagerd's contract with behaviour that shows what reaches a handler. */
export function handlers(): Handlers {
  const seen: unknown[] = [];
  const started = Promise.withResolvers<void>();
  const release = Promise.withResolvers<void>();
  const routes = (router: ConnectRouter) =>
    router.service(AssetService, {
      getAsset: async (request, context) => {
        const caller = callerOf(context);
        seen.push(caller);
        if (request.assetId === "missing") {
          throw new ServiceError("NOT_FOUND", "no such asset", {
            cause: new Error("the row is gone"),
            metadata: { asset: "missing" },
          });
        }
        if (request.assetId === "broken") throw new TypeError("secret inner detail");
        if (request.assetId === "slow")
          await new Promise((_, reject) => caller.signal.addEventListener("abort", reject));
        return {
          assetId: request.assetId,
          tenantId: request.tenantId,
          name: `${caller.service} ${caller.subject ?? "-"}`,
        };
      },
      downloadAsset: async function* (request, context) {
        yield { chunk: Buffer.from("one") };
        started.resolve();
        if (request.assetId === "endless") {
          await new Promise((_, reject) =>
            context.signal.addEventListener("abort", () => reject(context.signal.reason)),
          );
        }
        await release.promise;
        yield { chunk: Buffer.from("two") };
      },
      uploadAsset: async (requests) => {
        let bytes = 0;
        for await (const { part } of requests) {
          seen.push(part.case);
          if (part.case === "chunk") bytes += part.value.length;
        }
        return { sizeBytes: BigInt(bytes) };
      },
    });
  return { routes, seen, started, release };
}

export async function startServer(options: Partial<ListenRpcOptions> & { readonly handlers?: Handlers } = {}) {
  const served = options.handlers ?? handlers();
  const identity = options.identity ?? identityOf("assetmanagerd").source;
  const metrics = new Metrics();
  const server = await listenRpc({
    host: "127.0.0.1",
    port: 0,
    log,
    metrics,
    identity,
    routes: served.routes,
    ...options,
  });
  stack.use(server);
  return { server, metrics, ...served };
}

export function open(port: number, options: Partial<RpcChannelOptions> & { readonly as?: string } = {}) {
  const channel = openRpcChannel({
    peer: "assetmanagerd",
    address: { host: "127.0.0.1", port },
    identity: options.identity ?? identityOf(options.as ?? "metald").source,
    ...options,
  });
  stack.use(channel);
  return { channel, assets: channel.client(AssetService) };
}

export async function rejectsWith(
  call: Promise<unknown>,
  reason: ErrorReason,
  message?: RegExp,
): Promise<ServiceError> {
  const error = await call.then(
    () => assert.fail(`succeeded instead of ${reason}`),
    (cause: unknown) => cause,
  );
  assert.ok(isServiceError(error), `not a ServiceError: ${String(error)}`);
  assert.equal(error.reason, reason, error.message);
  if (message) assert.match(error.message, message);
  return error;
}

export const gatewayPrincipal = (overrides = {}) => ({
  tenantId,
  subject: "key_1",
  roles: ["owner"],
  requestId: "req-7",
  ...overrides,
});

export function mint(
  identity: IdentitySource,
  options: { readonly nowMs?: number; readonly principal?: object } = {},
): string {
  return mintPrincipal({
    identity: identity.current,
    principal: gatewayPrincipal(options.principal),
    nowMs: options.nowMs ?? Date.now(),
  });
}

export async function collect<T>(messages: AsyncIterable<T>): Promise<T[]> {
  const all: T[] = [];
  for await (const message of messages) all.push(message);
  return all;
}

export async function* chunks(...values: (Uint8Array | undefined)[]) {
  for (const value of values) {
    yield await Promise.resolve(value === undefined ? {} : { part: { case: "chunk" as const, value } });
  }
}

export function post(
  session: ReturnType<typeof connectHttp2>,
  path: string,
  body: Uint8Array,
  headers: Record<string, string> = {},
): Promise<{ status: number; body: string }> {
  return new Promise((resolve, reject) => {
    const stream = session.request({
      ":method": "POST",
      ":path": path,
      "content-type": "application/proto",
      ...headers,
    });
    let status = 0;
    let text = "";
    stream.on("response", (response) => (status = response[":status"] ?? 0));
    stream.on("data", (chunk: Buffer) => (text += chunk.toString()));
    stream.on("end", () => resolve({ status, body: text }));
    stream.on("error", reject);
    stream.end(body);
  });
}

export function rawExchange(port: number, request: string): Promise<string> {
  return new Promise((resolve) => {
    const socket = connectTcp({ host: "127.0.0.1", port }, () => socket.write(request));
    let text = "";
    socket.on("data", (chunk) => (text += chunk.toString()));
    socket.on("error", () => undefined);
    socket.on("close", () => resolve(text));
  });
}
