import { isId } from "@unkey/base";
import {
  type Counters,
  canonicalCounters,
  counterNames,
  type Integral,
  maxAgeDays,
  maxFutureMs,
  type SeriesKey,
  seriesName,
  type UsageWindow,
  versionOf,
  windowMs,
} from "./usage-window.ts";

/** Gaps are longer than a second, so a minute has no more. */
const maxGaps = 60;
const dayMs = 86_400_000;

/** The latest window of a series that was taken, as far as its successor has to fit it. */
export interface SeriesHead extends SeriesKey {
  readonly tenantId: string;
  readonly appId: string;
  readonly startMs: number;
  readonly coveredToMs: number;
  readonly logEpoch: bigint;
  readonly revision: number;
  readonly hash: string;
  /** canonicalCounters of its closing. */
  readonly closing: string;
  readonly final: boolean;
}

/** A window that breaks an invariant: stored as received, billed by nobody. */
export interface SetAside {
  /** Place of the window in its batch. */
  readonly index: number;
  readonly why: string;
}

export interface Judgement {
  readonly setAside: readonly SetAside[];
  /** Heads that moved. */
  readonly heads: readonly SeriesHead[];
}

/**
 * Checks the windows of a batch: each by itself, and against the window before it where that one is the latest taken of
 * its series. `heads` holds what is known of the series, by `seriesName`.
 */
export function judgeWindows(
  windows: readonly UsageWindow[],
  heads: ReadonlyMap<string, SeriesHead>,
  { hostId, nowMs }: { readonly hostId: string; readonly nowMs: number },
): Judgement {
  const setAside: SetAside[] = [];
  const moved = new Map<string, SeriesHead>();
  // In the order of time, so that the windows of one batch fit each other however it lists them.
  const ordered = windows.map((window, index) => ({ window, index })).toSorted((a, b) => before(a.window, b.window));
  for (const { window, index } of ordered) {
    const name = seriesName(window);
    const head = moved.get(name) ?? heads.get(name);
    const why = faultOfWindow(window, { hostId, nowMs }) ?? (head === undefined ? undefined : misfit(window, head));
    if (why !== undefined) setAside.push({ index, why });
    else if (head === undefined || before(head, window) < 0) moved.set(name, headOf(window));
  }
  return { setAside: setAside.toSorted((a, b) => a.index - b.index), heads: [...moved.values()] };
}

type Placed = Pick<UsageWindow, "startMs" | "logEpoch" | "revision">;

function before(a: Placed, b: Placed): number {
  const difference = versionOf(a) - versionOf(b);
  return a.startMs - b.startMs || (difference < 0n ? -1 : difference > 0n ? 1 : 0);
}

function headOf(window: UsageWindow): SeriesHead {
  const { hostId, vmId, incarnation, tenantId, appId, startMs, coveredToMs, logEpoch, revision, hash, final } = window;
  return {
    hostId,
    vmId,
    incarnation,
    tenantId,
    appId,
    startMs,
    coveredToMs,
    logEpoch,
    revision,
    hash,
    final,
    closing: canonicalCounters(window.closing),
  };
}

/** Why the window cannot be true whatever came before it. */
function faultOfWindow(window: UsageWindow, { hostId, nowMs }: { hostId: string; nowMs: number }): string | undefined {
  const { startMs, coveredFromMs, coveredToMs } = window;
  if (window.hostId !== hostId) return "it belongs to another host than its batch";
  if (!isId("tenant", window.tenantId)) return "its tenant_id is malformed";
  if (!isId("app", window.appId)) return "its app_id is malformed";
  if (!isId("vm", window.vmId)) return "its vm_id is malformed";
  if (window.deploymentId !== "" && !isId("dep", window.deploymentId)) return "its deployment_id is malformed";
  if (window.incarnation < 1) return "its incarnation is 0";
  if (!Number.isSafeInteger(startMs) || startMs < 0 || startMs % windowMs !== 0) return "it is not an aligned minute";
  if (startMs > nowMs + maxFutureMs) return "it starts more than five minutes in the future";
  if (startMs < nowMs - maxAgeDays * dayMs) return `it is older than ${maxAgeDays} days`;
  if (!(coveredFromMs >= startMs && coveredToMs >= coveredFromMs && coveredToMs <= startMs + windowMs)) {
    return "what it covers does not lie inside its minute";
  }
  if (window.previousHash.length !== 0 && window.previousHash.length !== 64) return "its previous_hash is malformed";
  return (
    faultOfCounters(window.opening, window.closing, window.counterFault) ??
    faultOfIntegral("memory_allocated", window.memoryAllocated, coveredToMs - coveredFromMs) ??
    faultOfIntegral("memory_resident", window.memoryResident, coveredToMs - coveredFromMs) ??
    faultOfIntegral("disk_allocated", window.diskAllocated, coveredToMs - coveredFromMs) ??
    faultOfGaps(window)
  );
}

function faultOfCounters(opening: Counters, closing: Counters, counterFault: boolean): string | undefined {
  for (const name of counterNames) {
    const from = opening[name];
    const to = closing[name];
    if (from !== undefined && to === undefined) return `its closing ${name} is missing`;
    if (!counterFault && from !== undefined && to !== undefined && to < from) return `its ${name} goes backwards`;
  }
  return undefined;
}

function faultOfIntegral(name: string, integral: Integral | undefined, coveredMs: number): string | undefined {
  if (integral === undefined) return undefined;
  const { byteMs, minBytes, maxBytes } = integral;
  const possible = byteMs >= 0n && minBytes <= maxBytes && byteMs <= maxBytes * BigInt(coveredMs);
  return possible ? undefined : `its ${name} is more than its highest value allows`;
}

function faultOfGaps({ gaps, coveredFromMs, coveredToMs }: UsageWindow): string | undefined {
  if (gaps.length > maxGaps) return `it has more than ${maxGaps} gaps`;
  const inside = gaps.every(({ fromMs, toMs }) => fromMs >= coveredFromMs && toMs >= fromMs && toMs <= coveredToMs);
  return inside ? undefined : "a gap does not lie inside what it covers";
}

/**
 * Why the window cannot follow or replace the latest one of its series. One whose predecessor has not been taken yet is
 * let through: batches may come in any order, and a report says that its chain is broken until the predecessor is there.
 */
function misfit(window: UsageWindow, head: SeriesHead): string | undefined {
  if (window.tenantId !== head.tenantId || window.appId !== head.appId)
    return "its series belongs to another tenant or app";
  if (window.startMs < head.startMs) return undefined;
  if (window.startMs === head.startMs) {
    const same = versionOf(window) === versionOf(head);
    return same && window.hash !== head.hash ? "another window has its minute and revision" : undefined;
  }
  if (window.logEpoch !== head.logEpoch) return undefined; // a new log begins its own chain
  if (head.final) return "its series has ended before";
  if (window.previousHash === "") return "it claims to be the first of a series that has earlier windows";
  if (window.previousHash !== head.hash) return undefined;
  if (canonicalCounters(window.opening) !== head.closing) return "it does not open with the closing counters before it";
  return window.coveredFromMs === head.coveredToMs ? undefined : "it does not begin where the window before it ends";
}
