import { rm } from "node:fs/promises";
import { type BuildId, type Clock, isServiceError, ServiceError, type TenantId } from "@unkey/base";
import { everyMs, type Logger, type Metrics } from "@unkey/daemon";
import type { RegistryCredentials } from "@unkey/oci";
import type { BuildFeed } from "./build-feed.ts";
import type { BuildQuotas } from "./build-quotas.ts";
import type { BuildRunner } from "./build-runner.ts";
import { type Build, failureOf } from "./domain/build.ts";
import { isTerminal } from "./domain/build-state.ts";
import { nextTurn, tenantPlaces } from "./domain/turns.ts";
import type { BuildChange, BuildStore, RulesSource } from "./ports.ts";
import { BuildMoved } from "./step-progress.ts";
import type { UploadService } from "./upload-service.ts";

export interface BuildQueueDeps {
  readonly store: BuildStore;
  readonly runner: Pick<BuildRunner, "run">;
  readonly feed: BuildFeed;
  /** Its sweep removes what an ended build was made from. */
  readonly uploads: Pick<UploadService, "sweep">;
  readonly quotas: Pick<BuildQuotas, "checkRunning">;
  readonly rules: RulesSource;
  readonly concurrency: number;
  readonly buildTimeoutMs: number;
  /** How often running builds are noted as alive and their tenants' minutes looked at. */
  readonly beatMs?: number;
  readonly scratchDirectory: string;
  readonly clock: Clock;
  readonly log: Logger;
  readonly metrics: Metrics;
  /** Cuts off what runs while the queue is disposed of. */
  readonly abort: AbortSignal;
}

/** A build that has taken the process down this often is not tried again. */
const maxAttempts = 3;
/** What a kill may lose of a build's counted time. */
const defaultBeatMs = 5000;

class Stopped extends Error {}
class Cancelled extends Error {}

/**
 * Runs pending builds, `concurrency` at a time, in the order in which they were asked for but fair to tenants (`nextTurn`). The rows are the queue: what is
 * held here is which of them wait or run in this process, and the logins, which are written nowhere. A build whose process
 * died starts over from its reference; one that was stopped by disposal is left as it is, for the next start.
 */
export class BuildQueue implements AsyncDisposable {
  readonly #deps: BuildQueueDeps;
  readonly #waiting: Build[] = [];
  readonly #running = new Map<
    BuildId,
    { readonly tenantId: TenantId; readonly controller: AbortController; readonly done: Promise<void> }
  >();
  readonly #credentials = new Map<BuildId, RegistryCredentials>();
  readonly #ended;
  readonly #beats: AsyncDisposable;
  #stopped = false;

  constructor(deps: BuildQueueDeps) {
    this.#deps = deps;
    this.#ended = deps.metrics.counter("unkey_builds_total", "Builds that ended, by outcome and reason.");
    const { log, beatMs = defaultBeatMs } = deps;
    this.#beats = everyMs(beatMs, () => this.#beat(), { name: "running-builds", log });
  }

  /** Takes up what an earlier process left: call it once, before anything is enqueued. */
  async recover(): Promise<void> {
    const { store, clock, log, scratchDirectory } = this.#deps;
    // A tool of the dead process may write for another moment.
    await rm(scratchDirectory, { recursive: true, force: true, maxRetries: 5 });
    for (const build of await store.unfinished()) {
      const { buildId, state, attempts, withCredentials, aliveAtMs } = build;
      // Nobody was at it since: what came after counts neither as the step's time nor against the tenant's minutes.
      const died = { stepEndedAtMs: Math.max(aliveAtMs, build.steps.at(-1)?.startedAtMs ?? 0) };
      if (withCredentials) {
        await this.#fail(
          build,
          new ServiceError("CREDENTIALS_LOST", "builderd restarted during the build and forgot the registry login"),
          died,
        );
      } else if (attempts >= maxAttempts) {
        await this.#fail(
          build,
          new ServiceError("BUILD_INTERRUPTED", `builderd ended ${attempts} times during the build`),
          died,
        );
      } else {
        if (state !== "pending") {
          await store.advance(build, state, "requeue", died, clock.nowMs());
          await store.log(build, "builderd restarted: the build starts over", clock.nowMs());
          log.info("build starts over", { buildId, state, attempts });
        }
        this.enqueue(await store.get(build.tenantId, buildId), undefined);
      }
    }
  }

  enqueue(build: Build, credentials: RegistryCredentials | undefined): void {
    if (credentials !== undefined) this.#credentials.set(build.buildId, credentials);
    this.#waiting.push(build);
    this.#startNext();
  }

  /** Ends a build; resolves when nothing of it runs or lies on disk any more. */
  async cancel(build: Build): Promise<void> {
    const { store, clock, feed } = this.#deps;
    for (;;) {
      const now = await store.get(build.tenantId, build.buildId);
      if (isTerminal(now.state)) break;
      if (await store.advance(now, now.state, "cancel", {}, clock.nowMs())) {
        this.#ended.inc({ outcome: "cancelled", reason: "" });
        feed.changed(build.buildId);
        break;
      }
    }
    this.#credentials.delete(build.buildId);
    const place = this.#waiting.findIndex(({ buildId }) => buildId === build.buildId);
    if (place >= 0) {
      this.#waiting.splice(place, 1);
      await this.#freeUpload(build);
    }
    const running = this.#running.get(build.buildId);
    running?.controller.abort(new Cancelled(`${build.buildId} was cancelled`));
    await running?.done;
  }

  /** Starts nothing more, waits for what runs, cuts it off at the abort signal. */
  async [Symbol.asyncDispose](): Promise<void> {
    this.#stopped = true;
    this.#waiting.length = 0;
    const cut = (): void => {
      for (const { controller } of this.#running.values()) controller.abort(new Stopped("builderd is stopping"));
    };
    if (this.#deps.abort.aborted) cut();
    else this.#deps.abort.addEventListener("abort", cut, { once: true });
    await Promise.all([...this.#running.values()].map(({ done }) => done));
    this.#deps.abort.removeEventListener("abort", cut);
    await this.#beats[Symbol.asyncDispose]();
  }

  #startNext(): void {
    while (!this.#stopped && this.#running.size < this.#deps.concurrency) {
      const build = this.#takeNext();
      if (build === undefined) return;
      const controller = new AbortController();
      // Registered before it begins, so that a cancellation finds it at any moment.
      const done = Promise.resolve()
        .then(() => this.#run(build, controller))
        .finally(() => {
          this.#running.delete(build.buildId);
          this.#credentials.delete(build.buildId);
          this.#startNext();
        });
      this.#running.set(build.buildId, { tenantId: build.tenantId, controller, done });
    }
  }

  #takeNext(): Build | undefined {
    const { concurrency, rules } = this.#deps;
    const at = nextTurn(
      this.#waiting.map(({ tenantId }) => tenantId),
      [...this.#running.values()].map(({ tenantId }) => tenantId),
      (tenantId) => tenantPlaces(concurrency, rules.rulesOf(tenantId).quota.concurrent),
    );
    return at === undefined ? undefined : this.#waiting.splice(at, 1)[0];
  }

  async #run(build: Build, controller: AbortController): Promise<void> {
    const { store, runner, buildTimeoutMs, log } = this.#deps;
    const { buildId, tenantId } = build;
    const timer = setTimeout(
      () =>
        controller.abort(new ServiceError("BUILD_TIMED_OUT", `the build took longer than ${buildTimeoutMs / 1000} s`)),
      buildTimeoutMs,
    );
    try {
      const now = await store.get(tenantId, buildId);
      if (now.state !== "pending") return; // cancelled while it waited
      await runner.run(now, this.#credentials.get(buildId), controller.signal);
      this.#ended.inc({ outcome: "completed", reason: "" });
      log.info("build completed", { buildId, tenantId });
    } catch (error) {
      const reason: unknown = controller.signal.aborted ? controller.signal.reason : error;
      if (reason instanceof Stopped || reason instanceof Cancelled || reason instanceof BuildMoved) return;
      await this.#fail(build, reason).catch((cause: unknown) =>
        log.error("a failed build could not be recorded", { buildId, error: cause }),
      );
    } finally {
      clearTimeout(timer);
      await this.#freeUpload(build);
    }
  }

  /** What was built from is not needed any more; one that expired meanwhile neither. */
  async #freeUpload({ buildId, request }: Build): Promise<void> {
    const { uploads, log } = this.#deps;
    if (request.source.kind !== "upload") return;
    await uploads
      .sweep()
      .catch((error: unknown) => log.warn("an upload is left to the next sweep", { buildId, error }));
  }

  async #beat(): Promise<void> {
    const { store, quotas, clock, log } = this.#deps;
    if (this.#running.size === 0) return;
    await store.setAlive([...this.#running.keys()], clock.nowMs());
    const running = [...this.#running.values()];
    for (const tenantId of new Set(running.map((build) => build.tenantId))) {
      await quotas.checkRunning(tenantId).catch((error: unknown) => {
        if (!isServiceError(error, "BUILD_QUOTA_EXCEEDED")) {
          log.warn("a tenant's minutes could not be read", { tenantId, error });
          return;
        }
        for (const build of running) if (build.tenantId === tenantId) build.controller.abort(error);
      });
    }
  }

  async #fail(build: Build, error: unknown, change: Pick<BuildChange, "stepEndedAtMs"> = {}): Promise<void> {
    const { store, clock, feed, log } = this.#deps;
    const { buildId, tenantId } = build;
    const failure = failureOf(error);
    const level = failure.reason === "INTERNAL" || failure.reason === "ROOTFS_WRITE_FAILED" ? "error" : "info";
    log[level]("build failed", { buildId, tenantId, error });
    const now = await store.get(tenantId, buildId);
    if (isTerminal(now.state)) return;
    await store.log(build, `failed: ${failure.message}`, clock.nowMs());
    await store.advance(now, now.state, "fail", { ...change, failure }, clock.nowMs());
    this.#ended.inc({ outcome: "failed", reason: failure.reason });
    feed.changed(buildId);
  }
}
