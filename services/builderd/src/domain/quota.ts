import { formatBytes, gib, ServiceError } from "@unkey/base";

/** What a tenant may build. */
export interface BuildQuota {
  /** At once; more wait for their turn. */
  readonly concurrent: number;
  readonly buildsPerDay: number;
  /** Bytes of layers fetched. */
  readonly bytesPerDay: number;
  readonly minutesPerDay: number;
}

/** What a tenant builds now and has used since midnight UTC. */
export interface QuotaUse {
  readonly running: number;
  readonly builds: number;
  readonly bytes: number;
  /** Time between the beginning and the end of builds, without their wait for a turn. */
  readonly buildMs: number;
}

/** Enough for a team that deploys all day, little enough that nobody fills the host within one. */
export const defaultBuildQuota: BuildQuota = {
  concurrent: 4,
  buildsPerDay: 500,
  bytesPerDay: 200 * gib,
  minutesPerDay: 600,
};

const dayMs = 86_400_000;
const minuteMs = 60_000;

/** Midnight UTC before (or at) an instant; days have no leap seconds in Unix time. */
export function dayStartMs(atMs: number): number {
  return Math.floor(atMs / dayMs) * dayMs;
}

/** When the day's counts begin again. */
export function dayEndMs(atMs: number): number {
  return dayStartMs(atMs) + dayMs;
}

/** Minutes used, begun ones included. */
export function minutesUsed({ buildMs }: QuotaUse): number {
  return Math.ceil(buildMs / minuteMs);
}

/** Before a build is taken in. Throws BUILD_QUOTA_EXCEEDED when it could not do any work today. */
export function checkBuild(quota: BuildQuota, used: QuotaUse, nowMs: number): void {
  if (used.builds >= quota.buildsPerDay) {
    throw exceeded(`${quota.buildsPerDay} builds a day`, `${used.builds} are used`, nowMs);
  }
  if (used.bytes >= quota.bytesPerDay) {
    throw exceeded(
      `${formatBytes(quota.bytesPerDay)} of layers a day`,
      `${formatBytes(used.bytes)} are fetched`,
      nowMs,
    );
  }
  checkMinutes(quota, used, nowMs);
}

/** Before layers are fetched; what the layer cache holds costs nothing. Throws BUILD_QUOTA_EXCEEDED. */
export function checkBytes(quota: BuildQuota, used: QuotaUse, bytes: number, nowMs: number): void {
  if (bytes === 0 || used.bytes + bytes <= quota.bytesPerDay) return;
  const sum = `${formatBytes(used.bytes)} are fetched and the image needs ${formatBytes(bytes)} more`;
  throw exceeded(`${formatBytes(quota.bytesPerDay)} of layers a day`, sum, nowMs);
}

/** Before a build and while it runs. Throws BUILD_QUOTA_EXCEEDED. */
export function checkMinutes(quota: BuildQuota, used: QuotaUse, nowMs: number): void {
  if (used.buildMs < quota.minutesPerDay * minuteMs) return;
  throw exceeded(`${quota.minutesPerDay} minutes of building a day`, `${minutesUsed(used)} are used`, nowMs);
}

function exceeded(limit: string, used: string, nowMs: number): ServiceError {
  const resetsAtMs = dayEndMs(nowMs);
  return new ServiceError(
    "BUILD_QUOTA_EXCEEDED",
    `the tenant may have ${limit}: ${used}; the count begins again at ${new Date(resetsAtMs).toISOString()}`,
    { metadata: { resetsAtMs: String(resetsAtMs) } },
  );
}
