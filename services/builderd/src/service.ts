import { type BuildId, type Clock, newId, ServiceError, type TenantId } from "@unkey/base";
import type { Logger } from "@unkey/daemon";
import type { RegistryCredentials } from "@unkey/oci";
import type { BuildFeed } from "./build-feed.ts";
import type { BuildQueue } from "./build-queue.ts";
import type { BuildQuotas } from "./build-quotas.ts";
import type { Build, BuildRequest } from "./domain/build.ts";
import { isTerminal } from "./domain/build-state.ts";
import { checkImageAllowed, policyNameOf } from "./domain/policy.ts";
import { type BuildQuota, dayStartMs, type QuotaUse } from "./domain/quota.ts";
import { tenantPlaces } from "./domain/turns.ts";
import type { BuildLimits, BuildStore, LogLine, RulesSource, Today } from "./ports.ts";

export interface BuildServiceDeps {
  readonly store: BuildStore;
  readonly queue: BuildQueue;
  readonly quotas: BuildQuotas;
  readonly rules: RulesSource;
  readonly feed: BuildFeed;
  /** What builds are made for, as `os/architecture`. */
  readonly platform: string;
  readonly limits: BuildLimits;
  readonly concurrency: number;
  readonly retention: { readonly keptMs: number; readonly keptPerTenant: number };
  readonly clock: Clock;
  readonly log: Logger;
  /** Aborted when the daemon stops: ends those who watch. */
  readonly stopping: AbortSignal;
}

export interface StartBuild {
  readonly tenantId: TenantId;
  readonly idempotencyKey: string;
  readonly request: BuildRequest;
  readonly credentials: RegistryCredentials | undefined;
}

const logPageLines = 200;

export class BuildService {
  readonly #deps: BuildServiceDeps;

  constructor(deps: BuildServiceDeps) {
    this.#deps = deps;
  }

  /** Starts a build, or answers the one that the key stands for. Throws what `BuildStore.create` throws, BUILD_QUOTA_EXCEEDED, IMAGE_NOT_ALLOWED. */
  async build({ tenantId, idempotencyKey, request, credentials }: StartBuild): Promise<Build> {
    const { store, queue, quotas, rules, platform, limits, clock, stopping } = this.#deps;
    if (stopping.aborted) throw new ServiceError("SHUTTING_DOWN", "builderd is stopping");
    const nowMs = clock.nowMs();
    policyNameOf(request.source); // a malformed reference is refused before anything else
    const { today, check } = quotas.admissionOf(tenantId);
    const wanted = {
      buildId: newId("build", nowMs),
      tenantId,
      idempotencyKey,
      request,
      withCredentials: credentials !== undefined,
      platform,
      nowMs,
    };
    const { build, created } = await store.create(wanted, limits, {
      today,
      check: (used) => {
        checkImageAllowed(rules.rulesOf(tenantId).policy, request.source);
        check(used);
      },
    });
    if (created) queue.enqueue(build, credentials);
    return this.#live(build);
  }

  async get(tenantId: TenantId, buildId: BuildId): Promise<Build> {
    return this.#live(await this.#deps.store.get(tenantId, buildId));
  }

  async list(tenantId: TenantId, limit: number, beforeId: string): Promise<Build[]> {
    return (await this.#deps.store.list(tenantId, limit, beforeId)).map((build) => this.#live(build));
  }

  /** The build now and after each change, until it has ended. */
  async *watch(tenantId: TenantId, buildId: BuildId, signal: AbortSignal): AsyncGenerator<Build> {
    using watch = this.#deps.feed.watch(buildId);
    for (;;) {
      const build = await this.get(tenantId, buildId);
      yield build;
      if (isTerminal(build.state)) return;
      await this.#next(watch, signal);
    }
  }

  /** The build's log after a line, 0 for all of it; with `follow` until the build has ended. */
  async *logs(
    tenantId: TenantId,
    buildId: BuildId,
    { follow, afterSequence }: { readonly follow: boolean; readonly afterSequence: number },
    signal: AbortSignal,
  ): AsyncGenerator<LogLine> {
    using watch = this.#deps.feed.watch(buildId);
    let read = afterSequence;
    for (;;) {
      // Looked at before the lines: what is written until the end is then read in any case.
      const build = await this.#deps.store.get(tenantId, buildId);
      for (;;) {
        const lines = await this.#deps.store.readLog(build, read, logPageLines);
        for (const line of lines) {
          read = line.sequence;
          yield line;
        }
        if (lines.length < logPageLines) break;
      }
      if (!follow || isTerminal(build.state)) return;
      await this.#next(watch, signal);
    }
  }

  /** Ends a build that has not ended; another one stays as it is. */
  async cancel(tenantId: TenantId, buildId: BuildId): Promise<Build> {
    const { store, queue } = this.#deps;
    await queue.cancel(await store.get(tenantId, buildId));
    return this.get(tenantId, buildId);
  }

  /** As it holds: a tenant never has every place. */
  async quota(
    tenantId: TenantId,
  ): Promise<{ readonly quota: BuildQuota; readonly used: QuotaUse; readonly today: Today }> {
    const { quotas, concurrency } = this.#deps;
    const { quota, used, today } = await quotas.of(tenantId);
    return { quota: { ...quota, concurrent: tenantPlaces(concurrency, quota.concurrent) }, used, today };
  }

  /** Removes builds and results that have had their time. It takes no hint: a crash is finished by the next pass. */
  async prune(): Promise<void> {
    const { store, retention, clock, log } = this.#deps;
    const nowMs = clock.nowMs();
    const builds = await store.prune({
      endedBeforeMs: nowMs - retention.keptMs,
      keptPerTenant: retention.keptPerTenant,
      todayMs: dayStartMs(nowMs),
    });
    if (builds > 0) log.info("builds removed", { builds });
  }

  async #next(watch: { next(signal: AbortSignal): Promise<void> }, signal: AbortSignal): Promise<void> {
    const { stopping } = this.#deps;
    await watch.next(AbortSignal.any([signal, stopping])).catch((error: unknown) => {
      if (stopping.aborted) throw new ServiceError("SHUTTING_DOWN", "builderd is stopping; ask again");
      throw error;
    });
  }

  /** Adds how far the running step is. */
  #live(build: Build): Build {
    const bytes = this.#deps.feed.progress(build.buildId);
    const last = build.steps.at(-1);
    if (bytes === undefined || last === undefined || last.endedAtMs !== 0) return build;
    return {
      ...build,
      steps: [...build.steps.slice(0, -1), { ...last, bytesDone: bytes.done, bytesTotal: bytes.total }],
    };
  }
}
