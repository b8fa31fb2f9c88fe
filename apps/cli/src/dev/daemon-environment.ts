import { join } from "node:path";
import type { DaemonSpec, Ports } from "./daemon-spec.ts";
import type { Home } from "./home.ts";

/** The name in every certificate of a platform that `unkey dev` makes. */
export const trustDomain = "unkey.local";

const servicesDir = join(import.meta.dirname, "../../../../services");

interface Service {
  readonly name: string;
  readonly dependsOn: readonly string[];
  /** The documented ports: rpc and health of each, and gatewayd's ingress. */
  readonly ports: Ports;
  /** Its own settings, without the prefix. */
  readonly settings: (home: Home, ports: Ports) => Readonly<Record<string, string>>;
}

/** In the order of their dependencies. A peer is named by its address file, so a restart may move it. */
const services: readonly Service[] = [
  {
    name: "assetmanagerd",
    dependsOn: ["certificates"],
    ports: { rpc: 8083, health: 9468 },
    settings: (home) => ({
      STAGING_ROOTS: join(home.dataDir("metald"), "vms"),
      INTAKE_ROOTS: join(home.dataDir("builderd"), "scratch"),
      BUILDERD_ADDRESS: peer(home, "builderd"), // asked only when a query wants a build: neither waits for the other
    }),
  },
  {
    name: "billing-aggregator",
    dependsOn: ["certificates"],
    ports: { rpc: 8084, health: 9469 },
    settings: () => ({}),
  },
  {
    name: "billaged",
    dependsOn: ["certificates", "billing-aggregator"],
    ports: { rpc: 8081, health: 9466 },
    settings: (home) => ({ AGGREGATOR_ADDRESS: peer(home, "billing-aggregator") }),
  },
  {
    name: "builderd",
    dependsOn: ["certificates", "provenance-key", "assetmanagerd"],
    ports: { rpc: 8082, health: 9467 },
    settings: (home) => ({
      ASSETMANAGERD_ADDRESS: peer(home, "assetmanagerd"),
      PROVENANCE_KEY_FILE: home.provenance.keyFile,
      PROVENANCE_KEYS_FILE: home.provenance.trustedFile,
    }),
  },
  {
    name: "metald",
    dependsOn: ["certificates", "provenance-key", "guest", "assetmanagerd", "billaged"],
    ports: { rpc: 8080, health: 9465 },
    settings: (home) => ({
      GUEST_DIR: home.guestDir,
      PROVENANCE_KEYS_FILE: home.provenance.trustedFile,
      ASSETMANAGERD_ADDRESS: peer(home, "assetmanagerd"),
      BILLAGED_ADDRESS: peer(home, "billaged"),
    }),
  },
  {
    name: "gatewayd",
    dependsOn: ["certificates", "builderd", "metald", "billing-aggregator", "assetmanagerd"],
    ports: { rpc: 8000, ingress: 8443, health: 9464 },
    settings: (home, ports) => ({
      INGRESS_PORT: String(ports["ingress"]),
      BUILDERD_ADDRESS: peer(home, "builderd"),
      ASSETMANAGERD_ADDRESS: peer(home, "assetmanagerd"),
      AGGREGATOR_ADDRESS: peer(home, "billing-aggregator"),
      METALD_ADDRESSES: peer(home, "metald"),
    }),
  },
];

/**
 * The six daemons with their whole environment. A setting that the user gave in the environment of `unkey dev up` wins,
 * except for those that the supervisor itself relies on.
 */
export function platformDaemons(env: Readonly<Record<string, string | undefined>>): DaemonSpec[] {
  return services.map(({ name, dependsOn, ports, settings }) => {
    const prefix = `UNKEY_${name.toUpperCase().replaceAll("-", "_")}_`;
    const given = Object.entries(env).flatMap(([key, value]) =>
      key.startsWith(prefix) && value !== undefined ? [[key, value] as const] : [],
    );
    return {
      name,
      dependsOn,
      ports,
      main: join(servicesDir, name, "src/main.ts"),
      environment: ({ home, ports: asked }) => ({
        ...prefixed(prefix, { DATA_DIR: home.dataDir(name), ...settings(home, asked) }),
        ...Object.fromEntries(given),
        ...prefixed(prefix, {
          LISTEN_PORT: String(asked["rpc"]),
          HEALTH_PORT: String(asked["health"]),
          ADDRESS_FILE: home.addressFile(name),
          IDENTITY_DIR: home.identityDir(name),
          TRUST_DOMAIN: trustDomain,
        }),
      }),
    };
  });
}

function prefixed(prefix: string, settings: Readonly<Record<string, string>>): Record<string, string> {
  return Object.fromEntries(Object.entries(settings).map(([name, value]) => [prefix + name, value]));
}

function peer(home: Home, name: string): string {
  return `file:${home.addressFile(name)}`;
}
