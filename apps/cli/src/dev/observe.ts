import { findDaemon } from "./daemon-process.ts";
import type { DaemonSpec } from "./daemon-spec.ts";
import type { Home } from "./home.ts";
import { type Addresses, type HealthReport, readAddresses, readHealth } from "./readiness.ts";
import { readStatus } from "./status-file.ts";
import { isSupervised } from "./up.ts";

export interface ObservedDaemon {
  readonly name: string;
  /** `ready`, `not ready` or `not running`, as seen from here. */
  readonly state: "ready" | "not ready" | "not running";
  readonly pid?: number;
  readonly uptimeMs?: number;
  readonly restarts: number;
  readonly lastExit?: string;
  readonly addresses: Addresses;
  readonly health?: HealthReport;
}

export interface ObservedPlatform {
  readonly home: string;
  readonly supervised: boolean;
  readonly phase: string;
  readonly logs: string;
  readonly daemons: readonly ObservedDaemon[];
}

/** The platform as it is, not as its supervisor last wrote: from processes, address files and health ports. */
export async function observePlatform(home: Home, daemons: readonly DaemonSpec[]): Promise<ObservedPlatform> {
  const status = readStatus(home);
  const supervised = isSupervised(home);
  const observed = daemons.map(async ({ name, main }): Promise<ObservedDaemon> => {
    const known = status?.daemons.find((daemon) => daemon.name === name);
    const [process] = findDaemon(main, home.root);
    const history = {
      restarts: known?.restarts ?? 0,
      ...(known?.lastExit === undefined ? {} : { lastExit: known.lastExit }),
    };
    if (process === undefined) return { name, state: "not running", addresses: {}, ...history };
    const addresses = readAddresses(home.addressFile(name), process.pid) ?? {};
    const health =
      addresses["health"] === undefined ? undefined : await readHealth(addresses["health"]).catch(() => undefined);
    return {
      name,
      state: health?.ready ? "ready" : "not ready",
      pid: process.pid,
      uptimeMs: health === undefined ? 0 : health.uptimeSeconds * 1000,
      addresses,
      ...history,
      ...(health === undefined ? {} : { health }),
    };
  });
  return {
    home: home.root,
    supervised,
    phase: supervised ? (status?.phase ?? "starting") : "not supervised",
    logs: home.logDir,
    daemons: await Promise.all(observed),
  };
}
