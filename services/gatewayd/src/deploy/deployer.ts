import type { Clock } from "@unkey/base";
import type { Logger } from "@unkey/daemon";
import { Fleet } from "../adapters/fleet.ts";
import type { Platform } from "../adapters/platform.ts";
import type { Probe, RouteTable } from "../ports.ts";
import type { AppStore } from "../store/app-store.ts";
import type { WorkStore } from "../store/work-store.ts";
import { AppObserver } from "./app-observer.ts";
import { buildStep, type CredentialVault } from "./build-step.ts";
import { Changes } from "./changes.ts";
import { DeploymentExecutor } from "./executor.ts";
import { placeStep } from "./place-step.ts";
import { drainStep, routeStep } from "./route-steps.ts";
import { VmSettler } from "./vm-settler.ts";
import { bootStep, createStep, healthStep, VmRemover } from "./vm-steps.ts";

export interface DeployerDeps {
  readonly workStore: WorkStore;
  readonly appStore: AppStore;
  readonly platform: Platform;
  readonly routes: RouteTable;
  readonly probe: Probe;
  readonly clock: Clock;
  readonly log: Logger;
  readonly random: () => number;
  readonly owner: string;
  readonly leaseMs: number;
  readonly patienceMs: number;
}

/** All that carries deployments out, put together; the executor is not started yet. */
export function assembleDeployer(deps: DeployerDeps) {
  const { workStore: store, appStore, platform, routes, clock, log } = deps;
  const nowMs = () => clock.nowMs();
  const fleet = new Fleet(platform);
  const observer = new AppObserver({ fleet, probe: deps.probe, clock });
  const settler = new VmSettler({ fleet, store: appStore, clock, log });
  const remover = new VmRemover({ store, settler, fleet });
  const changes = new Changes();
  const vault: CredentialVault = new Map();
  const executor = new DeploymentExecutor({
    store,
    steps: {
      build: buildStep({ platform, store, vault }),
      place: placeStep({ platform, store, remover, nowMs, random: deps.random }),
      create: createStep({ fleet, store, remover }),
      boot: bootStep({ fleet, store, observer }),
      health: healthStep({ observer, nowMs }),
      route: routeStep({ store, routes, nowMs, log }),
      drain: drainStep({ store: appStore, routes, settler, log }),
    },
    vault,
    changes,
    clock,
    log,
    owner: deps.owner,
    leaseMs: deps.leaseMs,
    patienceMs: deps.patienceMs,
  });
  return { executor, fleet, observer, settler, changes, vault };
}
