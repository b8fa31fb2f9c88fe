import { randomBytes } from "node:crypto";
import { readFile } from "node:fs/promises";
import { join } from "node:path";
import { fileURLToPath } from "node:url";
import { GatewayService } from "@unkey/api/gateway";
import { systemClock } from "@unkey/base";
import { type DaemonContext, everyMs, lockDataDir } from "@unkey/daemon";
import { Authority, HostCertificates } from "@unkey/pki";
import { openIdentity, openRpcChannel, warmUpValidation } from "@unkey/rpc";
import { openSqlite } from "@unkey/sql";
import packageJson from "../package.json" with { type: "json" };
import { HostDirectory } from "./adapters/host-directory.ts";
import { networkProbe } from "./adapters/network-probe.ts";
import { Platform } from "./adapters/platform.ts";
import { listenApi } from "./api/api-server.ts";
import { AuditLog } from "./api/audit-log.ts";
import { Keyring } from "./api/keyring.ts";
import { createPolicies, scopeOf } from "./api/policies.ts";
import { RateLimiter } from "./api/rate-limiter.ts";
import { ensureBootstrapKey, publishCertificate, replicaName } from "./bootstrap.ts";
import type { Config } from "./config.ts";
import { assembleDeployer } from "./deploy/deployer.ts";
import { gatewayHandlers } from "./handlers.ts";
import { listenIngress } from "./ingress/ingress-server.ts";
import { RouteMap } from "./ingress/route-map.ts";
import { assembleRegistry } from "./registry/registry.ts";
import { RegistryGate } from "./registry/registry-gate.ts";
import { AppService } from "./service/apps.ts";
import { BuildDocuments } from "./service/build-documents.ts";
import { DeploymentService } from "./service/deployments.ts";
import { KeyService } from "./service/keys.ts";
import { VmService } from "./service/vms.ts";
import { AppStore } from "./store/app-store.ts";
import { AuditStore } from "./store/audit-store.ts";
import { DeploymentStore } from "./store/deployment-store.ts";
import { KeyStore } from "./store/key-store.ts";
import { migrations } from "./store/schema.ts";
import { WorkStore } from "./store/work-store.ts";

const routesEveryMs = 1000;
const settleEveryMs = 5000;
const keysEveryMs = 2000;
const idempotencyEveryMs = 600_000;
/** Leaves live 24 hours at most; a third of that leaves room for a clock that is off. */
const renewEveryMs = 8 * 3_600_000;
const auditCheckedAtStart = 1000;

export async function startGatewayd(config: Config, context: DaemonContext): Promise<AsyncDisposable> {
  const { log, metrics, health } = context;
  const { dataDir, appDomain } = config;
  const clock = systemClock;
  await using stack = new AsyncDisposableStack(); // closes in reverse order, also when a later line throws

  stack.use(lockDataDir("gatewayd", dataDir));
  const identity = stack.use(openIdentity(config.rpc, context));
  const sql = stack.use(await openSqlite({ path: join(dataDir, "gatewayd.db"), migrations }));
  const keyStore = new KeyStore(sql);
  const auditStore = new AuditStore(sql);
  const appStore = new AppStore(sql);
  const deploymentStore = new DeploymentStore(sql);
  await ensureBootstrapKey(keyStore, dataDir, clock, log);

  const authority = Authority.open(join(dataDir, "ingress-ca"), {
    commonName: "Unkey Deploy ingress",
    permittedDns: [...new Set([appDomain, ...config.apiNames])],
  });
  await publishCertificate(config.caFile, authority.certPem);

  const channel = (peer: "builderd" | "metald" | "billing-aggregator" | "assetmanagerd", address: Config["builder"]) =>
    stack.use(openRpcChannel({ peer, address, identity, metrics }));
  const hosts = new HostDirectory({
    hosts: config.hosts.map(({ name, address }) => ({ name, channel: channel("metald", address) })),
    log,
  });
  const builder = channel("builderd", config.builder);
  const billing = channel("billing-aggregator", config.aggregator);
  const assets = channel("assetmanagerd", config.assetManager);
  const platform = new Platform({ identity, builder, billing, hosts });
  health.dependency("builderd", () => builder.ping(), { required: false });
  health.dependency("billing-aggregator", () => billing.ping(), { required: false });
  health.dependency("assetmanagerd", () => assets.ping(), { required: false });
  health.dependency("metald", () => hosts.check(), { required: false });

  const routes = stack.use(new RouteMap({ store: appStore, log }));
  await routes.refresh();
  stack.use(everyMs(routesEveryMs, () => routes.refresh(), { name: "routes", log }));

  const { fleet, observer, settler, changes, vault, executor } = assembleDeployer({
    workStore: new WorkStore(sql),
    appStore,
    platform,
    routes,
    probe: networkProbe,
    clock,
    log,
    random: Math.random,
    owner: await replicaName(dataDir),
    leaseMs: config.leaseMs,
    patienceMs: config.patienceMs,
  });
  stack.use(executor);
  stack.use(everyMs(settleEveryMs, (signal) => settler.pass(signal), { name: "settle", log, atStart: true }));

  const keyring = new Keyring({ store: keyStore, clock });
  stack.use(everyMs(keysEveryMs, () => keyring.recheckInUse(), { name: "keys in use", log }));
  const audit = stack.use(new AuditLog({ store: auditStore, clock, log, metrics }));
  const broken = await auditStore.verifyNewest(auditCheckedAtStart);
  if (broken !== undefined) log.error("the audit log was changed behind the gateway's back", { eventId: broken });
  health.layer(
    "audit-chain",
    broken === undefined ? { active: true } : { active: false, detail: `broken at ${broken}` },
  );

  const certificates = new HostCertificates({ authority });
  const leaf = (dnsNames: readonly string[], ips: readonly string[]) => () => {
    const { certPem, keyPem } = authority.issue({ commonName: dnsNames[0] ?? "", names: { dnsNames, ips } });
    return { cert: certPem, key: keyPem };
  };
  const ingress = stack.use(
    await listenIngress({
      host: config.ingressHost,
      port: config.ingressPort,
      domain: appDomain,
      routes,
      certificates,
      defaultCertificate: leaf([appDomain, `*.${appDomain}`], []),
      maxBodyBytes: config.maxAppBodyBytes,
      log,
      metrics,
      abort: context.abort,
      random: Math.random,
    }),
  );
  const publicPort = config.ingressPublicPort ?? ingress.port;
  const urlOf = (app: string) => `https://${app}.${appDomain}${publicPort === 443 ? "" : `:${publicPort}`}`;

  const vms = new VmService({ store: appStore, platform, fleet, routes, clock, log });
  const limiter = new RateLimiter({ burst: config.rateBurst, perSecond: config.ratePerSecond }, clock);
  const apiPort = () => config.apiPublicPort ?? api.port;
  const registry = assembleRegistry({
    sql,
    assets,
    platform,
    gate: new RegistryGate({ keyring, limiter, audit, log }),
    isOwnHost: ownHost(config.apiNames, apiPort),
    limits: {
      maxBlobBytes: config.maxBlobBytes,
      quotaBytes: config.registryQuotaBytes,
      graceMs: config.registryGraceMs,
      untaggedMs: config.registryUntaggedMs,
    },
    clock,
    log,
    metrics,
    abort: context.abort,
  });
  const { images, sweeper } = registry;
  stack.use(
    everyMs(config.registrySweepMs, (signal) => sweeper.pass(signal), { name: "registry", log, atStart: true }),
  );
  const deployments = new DeploymentService({
    store: deploymentStore,
    platform,
    executor,
    changes,
    vault,
    images,
    clock,
  });
  stack.use(everyMs(idempotencyEveryMs, () => deployments.forgetOldKeys(), { name: "idempotency keys", log }));
  const apps = new AppService({
    store: appStore,
    deployments: deploymentStore,
    vms,
    fleet,
    observer,
    settler,
    routes,
    clock,
    urlOf,
  });
  const knownScopes = new Set(GatewayService.methods.flatMap((method) => scopeOf(method) ?? []));
  const keys = new KeyService({ store: keyStore, keyring, clock, random: randomBytes, knownScopes });
  await warmUpValidation();
  const api = stack.use(
    await listenApi({
      host: config.rpc.host,
      port: config.rpc.port,
      certificate: leaf([...config.apiNames], ["127.0.0.1", "::1"]),
      implementation: gatewayHandlers({
        deployments,
        apps,
        appStore,
        vms,
        keys,
        audit: auditStore,
        platform,
        documents: new BuildDocuments(platform, assets),
        urlOf,
        version: packageJson.version,
        appDomain,
        maxUploadBytes: config.maxUploadBytes,
      }),
      policies: createPolicies({ keyring, limiter, audit, log, metrics, stopping: context.stopping }),
      registry: registry.handler,
      openApi: await readFile(fileURLToPath(import.meta.resolve("@unkey/api/openapi.json"))),
      log,
      abort: context.abort,
    }),
  );
  stack.use(
    everyMs(renewEveryMs, () => [api, ingress].forEach((server) => server.renew()), { name: "certificates", log }),
  );
  await executor.start();
  context.announce("rpc", api.host, api.port);
  context.announce("ingress", ingress.host, ingress.port);
  return stack.move(); // everything is up: the caller owns it now
}

/** Knows the API by the names and the port that references to pushed images call it by. */
function ownHost(names: readonly string[], port: () => number): (host: string) => boolean {
  return (host) => {
    const [name = "", written = "443"] = host.split(/:(?=\d+$)/);
    return [...names, "127.0.0.1", "[::1]"].includes(name) && Number(written) === port();
  };
}
