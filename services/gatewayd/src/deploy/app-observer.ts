import { type ExitStatus, type Vm, VmState } from "@unkey/api/metal";
import { type Clock, isServiceError, type ServiceError } from "@unkey/base";
import type { Fleet } from "../adapters/fleet.ts";
import type { Acting } from "../adapters/platform.ts";
import type { Probe } from "../ports.ts";
import type { VmRow } from "../store/rows.ts";
import { AppFailed } from "./step.ts";

export interface HealthCheckPlan {
  readonly port: number;
  /** Empty for a TCP connection. */
  readonly httpPath: string;
  readonly deadlineMs: number;
  /** Instant at which it is over. */
  readonly deadlineAtMs: number;
}

const shownLines = 20;
const probeTimeoutMs = 2000;
const pauseMs = { first: 20, most: 250 };
const ended: readonly VmState[] = [
  VmState.STOPPING,
  VmState.STOPPED,
  VmState.FAILED,
  VmState.DELETING,
  VmState.DELETED,
];

/** Looks at an app from outside: does it serve, has it ended, what did it say last. */
export class AppObserver {
  readonly #fleet: Fleet;
  readonly #probe: Probe;
  readonly #clock: Clock;

  constructor(deps: { readonly fleet: Fleet; readonly probe: Probe; readonly clock: Clock }) {
    this.#fleet = deps.fleet;
    this.#probe = deps.probe;
    this.#clock = deps.clock;
  }

  /** Resolves when the app serves. Throws AppFailed when its VM ends first or the deadline passes. */
  async untilHealthy(vm: VmRow, check: HealthCheckPlan, acting: Acting, signal: AbortSignal): Promise<void> {
    let lastSeen = "nothing was tried";
    for (let pause = pauseMs.first; ; pause = Math.min(pause * 2, pauseMs.most)) {
      // First the probe: a healthy app costs its host no question.
      const target = { host: vm.ipAddress, port: check.port, httpPath: check.httpPath, timeoutMs: probeTimeoutMs };
      const answer = await this.#probe(target, signal);
      if (answer.healthy) return;
      signal.throwIfAborted();
      lastSeen = answer.because;
      const seen = await this.#fleet.get(vm, acting, signal);
      if (ended.includes(seen.state)) throw await this.#exited(vm, seen, acting, signal);
      if (this.#clock.nowMs() >= check.deadlineAtMs) throw await this.#silent(vm, check, lastSeen, acting, signal);
      await this.#clock.sleep(pause, signal);
    }
  }

  /** What the caller is told of a failed boot: the error with the app's exit and last lines, when the host has them. */
  async explain(vm: VmRow, error: unknown, acting: Acting, signal: AbortSignal): Promise<unknown> {
    if (!isServiceError(error) || signal.aborted) return error;
    // The host could not be asked or has never heard of it: nothing to add.
    if (error.code === "unavailable" || error.code === "not_found") return error;
    const seen = await this.#fleet.get(vm, acting, signal).catch(() => undefined);
    if (!seen) return error;
    const lastLines = await this.#lastLines(vm, seen, acting, signal);
    return new AppFailed(error.reason, error.message, { exit: seen.exit, lastLines, cause: error });
  }

  async #exited(vm: VmRow, seen: Vm, acting: Acting, signal: AbortSignal): Promise<ServiceError> {
    const lastLines = await this.#lastLines(vm, seen, acting, signal);
    const { exit } = seen;
    return new AppFailed("APP_EXITED", `the app ended before it served: ${describeExit(exit)}`, { exit, lastLines });
  }

  async #silent(
    vm: VmRow,
    check: HealthCheckPlan,
    lastSeen: string,
    acting: Acting,
    signal: AbortSignal,
  ): Promise<ServiceError> {
    const lastLines = await this.#fleet.lastLines(vm, shownLines, acting, signal);
    const seconds = check.deadlineMs / 1000;
    if (check.httpPath === "") {
      return new AppFailed(
        "APP_NOT_LISTENING",
        `nothing listened on port ${check.port} within ${seconds} s: ${lastSeen}`,
        {
          lastLines,
        },
      );
    }
    const what = `GET ${check.httpPath} on port ${check.port}`;
    return new AppFailed("APP_UNHEALTHY", `${what} was not healthy within ${seconds} s: ${lastSeen}`, { lastLines });
  }

  async #lastLines(vm: VmRow, seen: Vm, acting: Acting, signal: AbortSignal): Promise<readonly string[]> {
    const told = seen.failure?.lastLines ?? [];
    return told.length > 0 ? told : this.#fleet.lastLines(vm, shownLines, acting, signal);
  }
}

function describeExit(exit: ExitStatus | undefined): string {
  switch (exit?.outcome.case) {
    case "code":
      return `exit code ${exit.outcome.value}`;
    case "signal":
      return `ended by ${exit.outcome.value}`;
    case "unknownBecause":
      return exit.outcome.value;
    default:
      return "its host does not say how";
  }
}
