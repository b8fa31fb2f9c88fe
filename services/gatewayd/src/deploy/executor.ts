import { backoffDelayMs, type Clock, type DeploymentId, isServiceError, ServiceError } from "@unkey/base";
import type { Logger } from "@unkey/daemon";
import type { Acting } from "../adapters/platform.ts";
import { isTerminal, type StepKind, stepKinds } from "../domain/deployment.ts";
import type { DeploymentRow } from "../store/rows.ts";
import { type Claim, ClaimLost, type WorkStore } from "../store/work-store.ts";
import type { CredentialVault } from "./build-step.ts";
import type { Changes } from "./changes.ts";
import { BuildFailed, describeFailure, GivenUp, type Step, type StepOutcome } from "./step.ts";

export interface ExecutorDeps {
  readonly store: WorkStore;
  readonly steps: Readonly<Record<StepKind, Step>>;
  readonly vault: CredentialVault;
  readonly changes: Changes;
  readonly clock: Clock;
  readonly log: Logger;
  /** Names this replica; stays the same over its restarts. */
  readonly owner: string;
  readonly leaseMs: number;
  /** How long a step, or the undoing of one, waits for a service that is down. */
  readonly patienceMs: number;
  readonly maxParallel?: number;
}

const lookEveryMs = 1000;
/** Places that one tenant's deployments leave to the others'. */
const keptForOthers = 2;
const retryBackoff = { baseMs: 200, maxMs: 3000 };
const undoTimeoutMs = 180_000;
const routeIndex = stepKinds.indexOf("route");

/** Why a run ends before its deployment does. */
class Stopping extends Error {}

/**
 * Carries deployments out, step by step. Whatever happens is stored before the next thing is begun, so a deployment
 * whose replica dies is taken up by any other at the step it was in, once the dead one's lease is over.
 *
 * A run is in one of two modes: forward, until a step fails or the caller gives up, and then backward, undoing.
 */
export class DeploymentExecutor implements AsyncDisposable {
  readonly #deps: ExecutorDeps;
  readonly #stop = new AbortController();
  readonly #running = new Map<DeploymentId, { readonly done: Promise<void>; readonly check: () => void }>();
  #wake = Promise.withResolvers<void>();
  #loop: Promise<void> | undefined;

  constructor(deps: ExecutorDeps) {
    this.#deps = deps;
  }

  /** Begins to look for work, first for what an earlier life of this replica left behind. */
  async start(): Promise<void> {
    await this.#deps.store.releaseAll(this.#deps.owner);
    this.#loop = this.#look();
  }

  /** There may be work. */
  wake(): void {
    this.#wake.resolve();
  }

  /** The caller may have given `deploymentId` up. */
  recheck(deploymentId: DeploymentId): void {
    this.#running.get(deploymentId)?.check();
  }

  /** Leaves running deployments where they are, free for any replica to go on. */
  async [Symbol.asyncDispose](): Promise<void> {
    this.#stop.abort(new Stopping("the gateway is stopping"));
    this.wake();
    await this.#loop;
    await Promise.all([...this.#running.values()].map(({ done }) => done));
  }

  async #look(): Promise<void> {
    const { store, clock, owner, leaseMs, log, maxParallel = 32 } = this.#deps;
    const { signal } = this.#stop;
    while (!signal.aborted) {
      this.#wake = Promise.withResolvers();
      try {
        while (!signal.aborted && this.#running.size < maxParallel) {
          const mostPerTenant = Math.max(1, maxParallel - keptForOthers);
          const claim = await store.claim(owner, clock.nowMs(), leaseMs, mostPerTenant);
          if (!claim) break;
          this.#take(claim);
        }
      } catch (error) {
        if (!signal.aborted) log.error("cannot look for deployments", { error });
      }
      const rest = new AbortController();
      const asleep = clock.sleep(lookEveryMs, AbortSignal.any([signal, rest.signal])).catch(() => undefined);
      await Promise.race([asleep, this.#wake.promise]);
      rest.abort();
    }
  }

  #take(claim: Claim): void {
    const { log } = this.#deps;
    const run = new Run(this.#deps, claim, this.#stop.signal);
    const done = run
      .finish()
      .catch((error: unknown) => {
        if (error instanceof ClaimLost) log.warn("another replica works on the deployment", { ...claim });
        else if (!(error instanceof Stopping)) log.error("a deployment is left to the next try", { ...claim, error });
      })
      .finally(() => {
        this.#running.delete(claim.deploymentId);
        this.wake(); // the app's next deployment may have waited for this one
      });
    this.#running.set(claim.deploymentId, { done, check: () => run.check() });
  }
}

/** One replica's work on one deployment under one claim. */
class Run {
  readonly #deps: ExecutorDeps;
  readonly #claim: Claim;
  readonly #stop: AbortSignal;
  /** Aborted when the claim is lost. */
  readonly #lost = new AbortController();
  /** Aborted when the caller has given up; only a forward run minds. */
  readonly #givenUp = new AbortController();
  #leaseUntilMs: number;
  #checking = false;

  constructor(deps: ExecutorDeps, claim: Claim, stop: AbortSignal) {
    this.#deps = deps;
    this.#claim = claim;
    this.#stop = stop;
    this.#leaseUntilMs = deps.clock.nowMs() + deps.leaseMs;
  }

  async finish(): Promise<void> {
    const { leaseMs, store, changes, vault } = this.#deps;
    const renewing = setInterval(() => this.check(), leaseMs / 3);
    try {
      this.check();
      while (!(await this.#advance()));
      vault.delete(this.#claim.deploymentId);
    } catch (error) {
      // Stopping or broken: free at once for whoever comes next. A lost claim is no longer ours to free.
      if (!(error instanceof ClaimLost)) await store.release(this.#claim).catch(() => undefined);
      throw error;
    } finally {
      clearInterval(renewing);
      changes.notify(this.#claim.deploymentId);
    }
  }

  /** Renews the lease and notices a caller who gave up. */
  check(): void {
    if (this.#checking) return;
    this.#checking = true;
    void this.#renew().finally(() => {
      this.#checking = false;
    });
  }

  async #renew(): Promise<void> {
    const { store, clock, leaseMs, log } = this.#deps;
    const untilMs = clock.nowMs() + leaseMs;
    try {
      const { cancelRequested } = await store.renew(this.#claim, untilMs);
      this.#leaseUntilMs = untilMs;
      if (cancelRequested) this.#givenUp.abort(new GivenUp());
    } catch (error) {
      if (error instanceof ClaimLost) this.#lost.abort(error);
      else if (clock.nowMs() >= this.#leaseUntilMs) this.#lost.abort(new ClaimLost(this.#claim));
      else log.warn("the lease of a deployment is not renewed yet", { ...this.#claim, error });
    }
  }

  /** Takes the deployment one step further; true when it is terminal. */
  async #advance(): Promise<boolean> {
    const { store, clock } = this.#deps;
    this.#mayGoOn();
    const deployment = await store.load(this.#claim);
    if (isTerminal(deployment.state)) return true;
    if (deployment.state === "failing" || deployment.state === "cancelling") {
      await this.#undo(deployment);
      await store.finish(this.#claim, "undone", clock.nowMs());
      return true;
    }
    const next = deployment.steps.find((step) => step.state === "pending" || step.state === "running");
    if (!next) {
      await store.finish(this.#claim, "complete", clock.nowMs());
      return true;
    }
    await this.#runStep(next.kind);
    this.#deps.changes.notify(this.#claim.deploymentId);
    return false;
  }

  async #runStep(kind: StepKind): Promise<void> {
    const { store, steps, clock } = this.#deps;
    const routed = stepKinds.indexOf(kind) > routeIndex;
    try {
      if (!routed && this.#givenUp.signal.aborted) throw new GivenUp();
      await store.startStep(this.#claim, kind, clock.nowMs());
      this.#deps.changes.notify(this.#claim.deploymentId);
      const cancel = routed ? [] : [this.#givenUp.signal];
      const outcome = await this.#patiently(
        kind,
        steps[kind].timeoutMs,
        cancel,
        async (signal) => steps[kind].run(await this.#work(kind), signal),
        (error) => this.#describe(kind, `waiting: ${error.message}`),
      );
      await this.#end(kind, outcome);
    } catch (error) {
      this.#mayGoOn();
      if (error instanceof ClaimLost) throw error;
      if (routed) {
        this.#deps.log.warn("a routed deployment left something behind", { ...this.#claim, step: kind, error });
        await this.#end(kind, { detail: "the rest is done in the background" });
      } else if (error instanceof GivenUp || this.#givenUp.signal.aborted) {
        await store.cancel(this.#claim);
      } else {
        const failure = describeFailure(kind, error);
        const level = failure.reason === "INTERNAL" ? "error" : "info";
        this.#deps.log[level]("a deployment failed", { ...this.#claim, step: kind, error });
        await store.fail(this.#claim, kind, failure, clock.nowMs());
      }
    }
  }

  async #end(kind: StepKind, { detail, skipped, ended }: StepOutcome): Promise<void> {
    if (ended) return;
    await this.#deps.store.endStep(this.#claim, kind, skipped ? "skip" : "finish", detail, this.#deps.clock.nowMs());
  }

  /** Undoes every step that was begun, last first. What cannot be undone now is left to the settling pass. */
  async #undo(deployment: DeploymentRow): Promise<void> {
    const { store, steps, clock, log, changes } = this.#deps;
    for (const { kind, state } of deployment.steps.toReversed()) {
      if (state !== "running" && state !== "done" && state !== "failed") continue;
      try {
        await this.#patiently(kind, undoTimeoutMs, [], async (signal) =>
          steps[kind].undo(await this.#work(kind), signal),
        );
      } catch (error) {
        this.#mayGoOn();
        if (error instanceof ClaimLost) throw error;
        log.warn("a step is not undone yet", { ...this.#claim, step: kind, error });
      }
      await store.undoStep(this.#claim, kind, clock.nowMs());
      changes.notify(this.#claim.deploymentId);
    }
  }

  /** Repeats `body` while a service that it needs is down, as long as patience and `timeoutMs` allow. */
  async #patiently<T>(
    kind: StepKind,
    timeoutMs: number,
    signals: readonly AbortSignal[],
    body: (signal: AbortSignal) => Promise<T>,
    onWait: (error: ServiceError) => Promise<void> = async () => undefined,
  ): Promise<T> {
    const { clock, patienceMs } = this.#deps;
    const startedAtMs = clock.nowMs();
    const timeout = AbortSignal.timeout(timeoutMs);
    const signal = AbortSignal.any([this.#stop, this.#lost.signal, timeout, ...signals]);
    for (let attempt = 0; ; attempt++) {
      try {
        signal.throwIfAborted();
        // A replica that was frozen must not act on a lease that is over.
        if (clock.nowMs() >= this.#leaseUntilMs) throw new ClaimLost(this.#claim);
        return await body(signal);
      } catch (error) {
        this.#mayGoOn();
        if (timeout.aborted) {
          throw new ServiceError("DEADLINE_EXCEEDED", `the step ${kind} took longer than ${timeoutMs / 1000} s`, {
            cause: error,
          });
        }
        signal.throwIfAborted();
        const transient = isServiceError(error) && error.code === "unavailable" && !(error instanceof BuildFailed);
        if (!transient || clock.nowMs() - startedAtMs >= patienceMs) throw error;
        await onWait(error);
        await clock.sleep(backoffDelayMs(retryBackoff, attempt), signal);
      }
    }
  }

  async #work(kind: StepKind) {
    const deployment = await this.#deps.store.load(this.#claim);
    const { deploymentId, tenantId } = deployment;
    const acting: Acting = { tenantId, subject: "gatewayd", roles: [], requestId: deploymentId };
    let told = "";
    const progress = async (detail: string) => {
      if (detail === told) return;
      told = detail;
      await this.#describe(kind, detail);
    };
    return { claim: this.#claim, deployment, acting, progress };
  }

  async #describe(kind: StepKind, detail: string): Promise<void> {
    await this.#deps.store.describeStep(this.#claim, kind, detail);
    this.#deps.changes.notify(this.#claim.deploymentId);
  }

  #mayGoOn(): void {
    this.#lost.signal.throwIfAborted();
    if (this.#stop.aborted) throw this.#stop.reason;
  }
}
