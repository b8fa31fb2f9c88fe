import type { Clock, TenantId } from "@unkey/base";
import type { Build } from "./domain/build.ts";
import { type BuildQuota, checkBuild, checkBytes, checkMinutes, dayStartMs, type QuotaUse } from "./domain/quota.ts";
import type { Admission, FetchQuota, QuotaStore, RulesSource, Today } from "./ports.ts";

export interface BuildQuotasDeps {
  readonly store: QuotaStore;
  readonly rules: RulesSource;
  readonly clock: Clock;
}

/** Holds tenants to their quotas: before a build is taken in, before it fetches, and while it runs. */
export class BuildQuotas implements FetchQuota {
  readonly #deps: BuildQuotasDeps;

  constructor(deps: BuildQuotasDeps) {
    this.#deps = deps;
  }

  /** What a new build of the tenant has to pass. */
  admissionOf(tenantId: TenantId): Admission {
    const today = this.#today();
    const { quota } = this.#deps.rules.rulesOf(tenantId);
    return { today, check: (used) => checkBuild(quota, used, today.nowMs) };
  }

  async admitBytes(build: Build, bytes: number): Promise<void> {
    const { store, rules } = this.#deps;
    const today = this.#today();
    const { quota } = rules.rulesOf(build.tenantId);
    await store.admitFetch(build, bytes, { today, check: (used) => checkBytes(quota, used, bytes, today.nowMs) });
  }

  async settleBytes(build: Build, bytes: number): Promise<void> {
    await this.#deps.store.settleFetch(build, bytes);
  }

  /** Throws BUILD_QUOTA_EXCEEDED once the tenant's minutes are used up. */
  async checkRunning(tenantId: TenantId): Promise<void> {
    const { quota, used, today } = await this.of(tenantId);
    checkMinutes(quota, used, today.nowMs);
  }

  async of(
    tenantId: TenantId,
  ): Promise<{ readonly quota: BuildQuota; readonly used: QuotaUse; readonly today: Today }> {
    const { store, rules } = this.#deps;
    const today = this.#today();
    return { quota: rules.rulesOf(tenantId).quota, used: await store.used(tenantId, today), today };
  }

  #today(): Today {
    const nowMs = this.#deps.clock.nowMs();
    return { startMs: dayStartMs(nowMs), nowMs };
  }
}
