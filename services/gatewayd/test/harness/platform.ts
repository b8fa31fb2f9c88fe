import { mkdtemp, readFile, rm } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import type { ConnectRouter } from "@connectrpc/connect";
import { type Client, createClient, type Interceptor } from "@connectrpc/connect";
import { createConnectTransport, createGrpcTransport, createGrpcWebTransport } from "@connectrpc/connect-node";
import { GatewayService } from "@unkey/api/gateway";
import { createLogger, Metrics, type RunningDaemon, startDaemon } from "@unkey/daemon";
import { Authority, ensureIdentity, IdentitySource } from "@unkey/pki";
import { listenRpc, type RpcServer } from "@unkey/rpc";
import { readConfig, startGatewayd } from "../../src/index.ts";
import { FakeAggregator } from "./fake-aggregator.ts";
import { FakeAssetmanagerd } from "./fake-assetmanagerd.ts";
import { FakeBuilderd } from "./fake-builderd.ts";
import { FakeMetald } from "./fake-metald.ts";
import { helloProgram } from "./programs.ts";

export const trustDomain = "test.unkey";

export interface Gateway extends AsyncDisposable {
  readonly daemon: RunningDaemon;
  readonly apiOrigin: string;
  readonly ingressPort: number;
  readonly ca: string;
  readonly key: string;
  client(options?: { key?: string; protocol?: "connect" | "grpc" | "grpc-web" }): Client<typeof GatewayService>;
}

/** The services around gatewayd as fakes on real sockets with mutual TLS, and a folder for gatewayd. */
export interface Surroundings extends AsyncDisposable {
  readonly dir: string;
  readonly dataDir: string;
  readonly metald: FakeMetald;
  readonly builderd: FakeBuilderd;
  readonly aggregator: FakeAggregator;
  readonly assetmanagerd: FakeAssetmanagerd;
  readonly logs: string[];
  readonly trustDomain: string;
  /** Directory with the certificate of a service. */
  identityOf(service: string): string;
  env(more?: Readonly<Record<string, string>>): Record<string, string>;
  /** Starts gatewayd in this process. */
  start(more?: Readonly<Record<string, string>>): Promise<Gateway>;
  /** Takes a fake off the network, or puts it back at the same address. */
  stopFake(name: "metald" | "builderd" | "billing-aggregator" | "assetmanagerd"): Promise<void>;
  startFake(name: "metald" | "builderd" | "billing-aggregator" | "assetmanagerd"): Promise<void>;
}

export async function surroundings(): Promise<Surroundings> {
  await using stack = new AsyncDisposableStack();
  const dir = await mkdtemp(join(tmpdir(), "gatewayd-"));
  stack.defer(() => rm(dir, { recursive: true, force: true }));
  const authority = Authority.open(join(dir, "pki"), { commonName: "test" });
  const logs: string[] = [];
  const log = createLogger({ level: "warn", write: (line) => logs.push(line) });

  const metald = new FakeMetald({ run: helloProgram("hello") });
  stack.defer(() => metald.stop());
  const builderd = new FakeBuilderd();
  const aggregator = new FakeAggregator();
  const assetmanagerd = new FakeAssetmanagerd();
  const fakes = { metald, builderd, "billing-aggregator": aggregator, assetmanagerd } as const;
  type FakeName = keyof typeof fakes;
  const cut = new AbortController();
  stack.defer(() => cut.abort());

  const servers = new Map<FakeName, RpcServer>();
  const ports = new Map<FakeName, number>();
  const identityOf = (service: string) => {
    const identityDir = join(dir, "identities", service);
    ensureIdentity(authority, identityDir, { id: { trustDomain, service } });
    return identityDir;
  };
  const startFake = async (name: FakeName) => {
    const routes: (router: ConnectRouter) => void = fakes[name].routes;
    const identity = IdentitySource.open(identityOf(name), { service: name });
    const abort = new AbortController();
    cut.signal.addEventListener("abort", () => abort.abort());
    const server = await listenRpc({
      routes,
      identity,
      host: "127.0.0.1",
      port: ports.get(name) ?? 0,
      log,
      metrics: new Metrics(),
      abort: abort.signal,
    });
    ports.set(name, server.port);
    servers.set(name, {
      ...server,
      [Symbol.asyncDispose]: async () => {
        abort.abort();
        await server[Symbol.asyncDispose]();
        identity[Symbol.dispose]();
      },
    });
  };
  const stopFake = async (name: FakeName) => {
    await servers.get(name)?.[Symbol.asyncDispose]();
    servers.delete(name);
  };
  for (const name of Object.keys(fakes) as FakeName[]) {
    await startFake(name);
    stack.defer(() => stopFake(name));
  }

  const dataDir = join(dir, "data");
  const env = (more: Readonly<Record<string, string>> = {}) => {
    const settings: Record<string, string> = {
      DATA_DIR: dataDir,
      IDENTITY_DIR: identityOf("gatewayd"),
      TRUST_DOMAIN: trustDomain,
      LISTEN_PORT: "0",
      INGRESS_PORT: "0",
      HEALTH_PORT: "0",
      BUILDERD_ADDRESS: `127.0.0.1:${ports.get("builderd")}`,
      ASSETMANAGERD_ADDRESS: `127.0.0.1:${ports.get("assetmanagerd")}`,
      AGGREGATOR_ADDRESS: `127.0.0.1:${ports.get("billing-aggregator")}`,
      METALD_ADDRESSES: `127.0.0.1:${ports.get("metald")}`,
      PATIENCE: "10s",
      LOG_LEVEL: "debug",
      ...more,
    };
    return Object.fromEntries(Object.entries(settings).map(([name, value]) => [`UNKEY_GATEWAYD_${name}`, value]));
  };

  const start = async (more: Readonly<Record<string, string>> = {}): Promise<Gateway> => {
    const daemon = await startDaemon({
      name: "gatewayd",
      env: env(more),
      readConfig,
      start: startGatewayd,
      write: (line) => logs.push(line),
    });
    return gatewayAt(daemon, more["DATA_DIR"] ?? dataDir);
  };

  const owned = stack.move();
  return {
    dir,
    dataDir,
    metald,
    builderd,
    aggregator,
    assetmanagerd,
    logs,
    trustDomain,
    identityOf,
    env,
    start,
    stopFake,
    startFake,
    [Symbol.asyncDispose]: () => owned.disposeAsync(),
  };
}

async function gatewayAt(daemon: RunningDaemon, dataDir: string): Promise<Gateway> {
  const port = (name: string) => Number(daemon.addresses.get(name)?.split(":").at(-1));
  const ca = await readFile(join(dataDir, "ingress-ca.crt"), "utf8");
  const key = (await readFile(join(dataDir, "bootstrap-key"), "utf8")).trim();
  const apiOrigin = `https://localhost:${port("rpc")}`;
  return {
    daemon,
    apiOrigin,
    ingressPort: port("ingress"),
    ca,
    key,
    client: (options) => apiClient(apiOrigin, ca, options?.key ?? key, options?.protocol),
    [Symbol.asyncDispose]: async () => void (await daemon.stop()),
  };
}

export function apiClient(
  baseUrl: string,
  ca: string,
  key: string,
  protocol: "connect" | "grpc" | "grpc-web" = "connect",
): Client<typeof GatewayService> {
  const authorize: Interceptor = (next) => (request) => {
    request.header.set("authorization", `Bearer ${key}`);
    return next(request);
  };
  const options = { baseUrl, httpVersion: "2", nodeOptions: { ca }, interceptors: [authorize] } as const;
  const settings = { ...options, interceptors: [...options.interceptors] };
  const transports = {
    connect: () => createConnectTransport(settings),
    grpc: () => createGrpcTransport({ baseUrl, nodeOptions: { ca }, interceptors: [authorize] }),
    "grpc-web": () => createGrpcWebTransport(settings),
  };
  return createClient(GatewayService, transports[protocol]());
}
