import type { Sample, SampleFrame, Series, UsageWindow, WindowBatch } from "@unkey/api/metering";
import { FrameOrder, type FrameOrderSnapshot } from "./frame-order.ts";
import { type Reading, windowMs, windowStartOf } from "./sample.ts";
import { graceMs, OpenSeries, type SeriesIdentity, type SeriesSnapshot } from "./series.ts";
import { fromSampleMessage, fromSeriesMessage, toBatch, toWindowMessage } from "./wire.ts";

/** A fact as it stands in the log. The meter is a fold over facts: the same facts in the same order give the same batches. */
export type Fact =
  | { readonly kind: "started"; readonly series: Series; readonly baseline: Sample }
  | { readonly kind: "frame"; readonly frame: SampleFrame }
  | { readonly kind: "stopped"; readonly series: Series; readonly baseline: Sample; readonly final: Sample }
  /** Time passed without a frame. */
  | { readonly kind: "tick"; readonly hostId: string; readonly atMs: number };

export interface MeterCounts {
  samples: number;
  /** Samples whose window was closed already, and repeats. */
  late: number;
  /** Samples of series that nobody announced. */
  unannounced: number;
}

export interface MeterSnapshot {
  readonly version: 1;
  readonly logEpoch: string;
  readonly nextBatchSeq: number;
  readonly hosts: readonly {
    readonly hostId: string;
    readonly order: FrameOrderSnapshot;
    readonly watermarkMs: number;
    readonly closedThroughMs: number;
    readonly series: readonly SeriesSnapshot[];
    readonly ended: readonly (readonly [key: string, atMs: number])[];
  }[];
}

/** Batches stay well below the receiver's message limit. */
const maxWindowsPerBatch = 2_000;
/** Ends are remembered so long, so that an end told twice is not billed twice. */
const rememberEndedMs = 7 * 24 * 60 * windowMs;
const maxEnded = 100_000;
const recentWindows = 10;

class Host {
  readonly hostId: string;
  order = new FrameOrder();
  /** The latest instant that any fact told. */
  watermarkMs = 0;
  /** Minutes before this one have been published. */
  closedThroughMs = 0;
  /** Open incarnations by VM; more than one only while an old one's end is not known yet. */
  readonly series = new Map<string, OpenSeries[]>();
  readonly ended = new Map<string, number>();

  constructor(hostId: string) {
    this.hostId = hostId;
  }
}

export class Meter {
  readonly #logEpoch: bigint;
  readonly #hosts = new Map<string, Host>();
  #nextBatchSeq = 1;
  /** By VM, for those who look; not part of what must survive. */
  readonly #recent = new Map<string, UsageWindow[]>();
  readonly counts: MeterCounts = { samples: 0, late: 0, unannounced: 0 };

  /** `logEpoch` tells this log from one that was lost. */
  constructor(logEpoch: bigint) {
    this.#logEpoch = logEpoch;
  }

  get openSeries(): number {
    let count = 0;
    for (const host of this.#hosts.values()) for (const open of host.series.values()) count += open.length;
    return count;
  }

  /** Samples that no closed window holds yet. */
  get openSamples(): number {
    let count = 0;
    for (const host of this.#hosts.values()) {
      for (const open of host.series.values()) for (const series of open) count += series.openSamples;
    }
    return count;
  }

  get hostIds(): string[] {
    return [...this.#hosts.keys()];
  }

  /** What has been taken from the host: its highest epoch, and all its frames up to `frameSeq`. */
  progress(hostId: string): { epoch: bigint; frameSeq: number; watermarkMs: number } {
    const host = this.#hosts.get(hostId);
    return {
      epoch: host?.order.epoch ?? 0n,
      frameSeq: host?.order.contiguous ?? 0,
      watermarkMs: host?.watermarkMs ?? 0,
    };
  }

  hasFrame(hostId: string, epoch: bigint, frameSeq: number): boolean {
    return this.#hosts.get(hostId)?.order.has(epoch, frameSeq) ?? false;
  }

  /** Open, ended or unheard of; an open one also says whether the baseline is the one that it began with. */
  stateOf(identity: SeriesIdentity, baseline: Reading): "unknown" | "open" | "ended" | "other" {
    const host = this.#hosts.get(identity.hostId);
    if (host?.ended.has(keyOf(identity))) return "ended";
    const open = host?.series
      .get(identity.vmId)
      ?.find((series) => series.identity.incarnation === identity.incarnation);
    if (open === undefined) return "unknown";
    return sameSeries(open, identity, baseline) ? "open" : "other";
  }

  /** Takes a fact; yields the batches that it completes, in order. */
  apply(fact: Fact): WindowBatch[] {
    switch (fact.kind) {
      case "started": {
        const baseline = fromSampleMessage(fact.baseline);
        this.#open(fromSeriesMessage(fact.series), baseline);
        this.#tellTime(this.#host(fact.series.hostId), baseline.atMs);
        return [];
      }
      case "stopped":
        return this.#end(fact);
      case "frame":
        return this.#frame(fact.frame);
      case "tick":
        return this.#advance(this.#host(fact.hostId), fact.atMs);
    }
  }

  /** Windows of a VM: the last ten closed ones, oldest first, and the open one. */
  windows(vmId: string): { closed: UsageWindow[]; open: UsageWindow[] } {
    const open: UsageWindow[] = [];
    for (const host of this.#hosts.values()) {
      for (const series of host.series.get(vmId) ?? []) {
        const window = series.peek((fromMs, toMs) => host.order.heardBetween(fromMs, toMs));
        if (window !== undefined) open.push(toWindowMessage(series.identity, window, series.previousHash).message);
      }
    }
    return { closed: [...(this.#recent.get(vmId) ?? [])], open };
  }

  #host(hostId: string): Host {
    let host = this.#hosts.get(hostId);
    if (host === undefined) {
      host = new Host(hostId);
      this.#hosts.set(hostId, host);
    }
    return host;
  }

  #open(identity: SeriesIdentity, baseline: Reading): OpenSeries | undefined {
    const host = this.#host(identity.hostId);
    if (host.ended.has(keyOf(identity))) return undefined;
    const open = host.series.get(identity.vmId) ?? [];
    const known = open.find((series) => series.identity.incarnation === identity.incarnation);
    if (known !== undefined) return known;
    const series = new OpenSeries(identity, baseline);
    host.series.set(identity.vmId, [...open, series]);
    return series;
  }

  #frame(frame: SampleFrame): WindowBatch[] {
    const host = this.#host(frame.hostId);
    const { hostEpoch } = frame;
    const frameSeq = Number(frame.frameSeq);
    if (hostEpoch < host.order.epoch || host.order.has(hostEpoch, frameSeq)) return [];
    const atMs = Number(frame.atMs);
    const columns = columnsOf(frame);
    for (let i = 0; i < frame.vmIds.length; i++) {
      const incarnation = frame.incarnations[i];
      const series = host.series.get(frame.vmIds[i] ?? "")?.find((open) => open.identity.incarnation === incarnation);
      if (series === undefined) this.counts.unannounced += 1;
      else if (series.add(frame.seqs[i] ?? 0, atMs, columns, i)) this.counts.samples += 1;
      else this.counts.late += 1;
    }
    host.order.note(hostEpoch, frameSeq, atMs);
    return this.#advance(host, atMs);
  }

  #end(fact: Extract<Fact, { kind: "stopped" }>): WindowBatch[] {
    const identity = fromSeriesMessage(fact.series);
    const series = this.#open(identity, fromSampleMessage(fact.baseline));
    if (series === undefined) return [];
    const host = this.#host(identity.hostId);
    series.end(fromSampleMessage(fact.final));
    const windows = this.#closeSeries(host, series, Number.POSITIVE_INFINITY);
    const others = host.series.get(identity.vmId)?.filter((open) => open !== series) ?? [];
    if (others.length > 0) host.series.set(identity.vmId, others);
    else host.series.delete(identity.vmId);
    this.#rememberEnded(host, keyOf(identity), series.openFromMs);
    return this.#batches(host, windowStartOf(Math.max(0, series.openFromMs - 1)), windows);
  }

  /** True when the host's time, moved on to `atMs`, would close a minute. */
  closesMinute(hostId: string, atMs: number): boolean {
    const host = this.#hosts.get(hostId);
    return host !== undefined && windowStartOf(atMs - graceMs) > host.closedThroughMs;
  }

  #tellTime(host: Host, atMs: number): void {
    host.watermarkMs = Math.max(host.watermarkMs, atMs);
    // A host's first fact only tells where its minutes begin.
    if (host.closedThroughMs === 0) host.closedThroughMs = windowStartOf(atMs);
  }

  /** Moves the host's time on; closes and publishes the minutes that lie behind it. */
  #advance(host: Host, atMs: number): WindowBatch[] {
    this.#tellTime(host, atMs);
    const limitMs = windowStartOf(host.watermarkMs - graceMs);
    if (limitMs <= host.closedThroughMs) return [];
    host.closedThroughMs = limitMs;
    const windows: UsageWindow[] = [];
    for (const open of host.series.values()) {
      for (const series of open) windows.push(...this.#closeSeries(host, series, limitMs));
    }
    return this.#batches(host, limitMs - windowMs, windows);
  }

  #closeSeries(host: Host, series: OpenSeries, limitMs: number): UsageWindow[] {
    const { identity } = series;
    const heard = (fromMs: number, toMs: number) => host.order.heardBetween(fromMs, toMs);
    return series.close(limitMs, host.watermarkMs, heard).map((window) => {
      const { message, hash } = toWindowMessage(identity, window, series.previousHash);
      series.previousHash = hash;
      this.#rememberRecent(identity.vmId, message);
      return message;
    });
  }

  #batches(host: Host, minuteAtMs: number, windows: readonly UsageWindow[]): WindowBatch[] {
    const batches: WindowBatch[] = [];
    for (let from = 0; from === 0 || from < windows.length; from += maxWindowsPerBatch) {
      const part = windows.slice(from, from + maxWindowsPerBatch);
      const seq = this.#nextBatchSeq++;
      batches.push(toBatch({ hostId: host.hostId, logEpoch: this.#logEpoch, minuteAtMs, seq, windows: part }));
    }
    return batches;
  }

  #rememberEnded(host: Host, key: string, atMs: number): void {
    host.ended.set(key, atMs);
    for (const [oldest, oldestAtMs] of host.ended) {
      if (host.ended.size <= maxEnded && oldestAtMs > host.watermarkMs - rememberEndedMs) break;
      host.ended.delete(oldest);
    }
  }

  #rememberRecent(vmId: string, window: UsageWindow): void {
    const windows = this.#recent.get(vmId) ?? [];
    windows.push(window);
    if (windows.length > recentWindows) windows.shift();
    this.#recent.delete(vmId);
    this.#recent.set(vmId, windows); // now the youngest
    const staleMs = Number(window.windowStartMs) - recentWindows * windowMs;
    for (const [oldest, [first]] of this.#recent) {
      const last = this.#recent.get(oldest)?.at(-1) ?? first;
      if (last === undefined || Number(last.windowStartMs) >= staleMs) break;
      this.#recent.delete(oldest);
    }
  }

  /** Everything that the fold needs to go on, as JSON. */
  snapshot(): MeterSnapshot {
    return {
      version: 1,
      logEpoch: this.#logEpoch.toString(),
      nextBatchSeq: this.#nextBatchSeq,
      hosts: [...this.#hosts.values()].map((host) => ({
        hostId: host.hostId,
        order: host.order.snapshot(),
        watermarkMs: host.watermarkMs,
        closedThroughMs: host.closedThroughMs,
        series: [...host.series.values()].flat().map((series) => series.snapshot()),
        ended: [...host.ended],
      })),
    };
  }

  static restore(snapshot: MeterSnapshot): Meter {
    const meter = new Meter(BigInt(snapshot.logEpoch));
    meter.#nextBatchSeq = snapshot.nextBatchSeq;
    for (const saved of snapshot.hosts) {
      const host = meter.#host(saved.hostId);
      host.order = FrameOrder.restore(saved.order);
      host.watermarkMs = saved.watermarkMs;
      host.closedThroughMs = saved.closedThroughMs;
      for (const series of saved.series) {
        const { vmId } = series.identity;
        host.series.set(vmId, [...(host.series.get(vmId) ?? []), OpenSeries.restore(series)]);
      }
      for (const [key, atMs] of saved.ended) host.ended.set(key, atMs);
    }
    return meter;
  }
}

/** In the order of counterNames and gaugeNames. */
export function columnsOf(frame: SampleFrame): readonly (readonly number[])[] {
  return [
    frame.cpuTimeUs,
    frame.diskReadBytes,
    frame.diskWriteBytes,
    frame.netInBytes,
    frame.netOutBytes,
    frame.memoryAllocatedBytes,
    frame.memoryResidentBytes,
    frame.diskAllocatedBytes,
  ];
}

function keyOf(identity: SeriesIdentity): string {
  return `${identity.vmId}\n${identity.incarnation}`;
}

function sameSeries(open: OpenSeries, identity: SeriesIdentity, baseline: Reading): boolean {
  const known = open.identity;
  return (
    known.tenantId === identity.tenantId &&
    known.appId === identity.appId &&
    open.baseline.atMs === baseline.atMs &&
    open.baseline.values.every((value, index) => Object.is(value, baseline.values[index]))
  );
}
