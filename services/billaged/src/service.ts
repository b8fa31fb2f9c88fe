import type { MeteringStatus, Sample, SampleFrame, Series, UsageWindow, WindowBatch } from "@unkey/api/metering";
import { type Clock, ServiceError } from "@unkey/base";
import type { Logger, Metrics } from "@unkey/daemon";
import { encodeBatch } from "./domain/batch-encoding.ts";
import { decodeFact, encodeFact } from "./domain/fact-encoding.ts";
import { checkFrame, checkLife } from "./domain/frame-check.ts";
import { type Fact, Meter } from "./domain/meter.ts";
import { fromSampleMessage, fromSeriesMessage } from "./domain/wire.ts";
import type { Checkpoint, LogFolder, LogPosition, MeterStore, PendingBatch } from "./ports.ts";
import { SegmentedLog } from "./segmented-log.ts";
import type { WakeUp } from "./wake-up.ts";

export interface MeterServiceDeps {
  readonly folder: LogFolder;
  readonly store: MeterStore;
  readonly clock: Clock;
  readonly log: Logger;
  readonly metrics: Metrics;
  /** Log and outbox together may grow to this. */
  readonly limitBytes: number;
  readonly segmentBytes: number;
  /** Called when there is something new to publish. */
  readonly news: WakeUp;
}

/** From here on new VMs are refused; samples of those that run are still taken until the limit itself. */
const admissionShare = 0.9;
const maxOpenSeries = 20_000;
/** Open samples that a checkpoint may hold when no window was closed. */
const maxIdleSnapshot = 10_000;
/** A host that has been silent for so long gets its time moved on by us. */
const silentMs = 5_000;

/**
 * Takes facts: first into the log, then, when they are durable, into the meter. Batches that the meter completes go to the
 * outbox; each closed minute also moves the checkpoint, and the log before it is removed.
 */
export class MeterService implements AsyncDisposable {
  readonly #deps: MeterServiceDeps;
  readonly #meter: Meter;
  #wal: SegmentedLog | undefined;
  /** Batches that are not in the store yet, and the checkpoint that goes with them. */
  #unsaved: PendingBatch[] = [];
  #checkpoint: Checkpoint | undefined;
  #saving: Promise<void> | undefined;
  /** The last save failed; the periodic pass tries again, not every sample. */
  #saveFailed = false;
  #backlogBytes = 0;
  #backlogBatches = 0;
  /** When each host was last heard, on the monotonic clock. */
  readonly #heardNs = new Map<string, bigint>();

  private constructor(deps: MeterServiceDeps, meter: Meter) {
    this.#deps = deps;
    this.#meter = meter;
    const gauge = (name: string, help: string, read: () => number) => {
      const handle = deps.metrics.gauge(`unkey_billaged_${name}`, help);
      deps.metrics.onCollect(() => handle.set(read()));
    };
    gauge("open_series", "Incarnations that are metered now.", () => meter.openSeries);
    gauge("samples", "Samples taken since the start.", () => meter.counts.samples);
    gauge("samples_late", "Samples that were repeats or whose minute was closed.", () => meter.counts.late);
    gauge("samples_unannounced", "Samples of VMs that nobody announced.", () => meter.counts.unannounced);
    gauge("log_bytes", "Size of log and outbox.", () => this.#usedBytes);
    gauge("pending_batches", "Batches that are not confirmed.", () => this.#backlogBatches + this.#unsaved.length);
  }

  /** Replays the log from the last checkpoint; the same facts give the same batches as before. */
  static async open(deps: MeterServiceDeps): Promise<MeterService> {
    const { store, folder, segmentBytes, log } = deps;
    const checkpoint = await store.checkpoint();
    const meter = checkpoint === undefined ? new Meter(store.logEpoch) : Meter.restore(checkpoint.snapshot);
    const service = new MeterService(deps, meter);
    let replayed = 0;
    const { log: wal, damage } = await SegmentedLog.open(
      { folder, segmentBytes },
      checkpoint?.position,
      (payload, end) => {
        service.#apply(decodeFact(payload), end);
        replayed += 1;
      },
    );
    service.#wal = wal;
    for (const { segment, lostBytes } of damage) {
      log.error("acknowledged records cannot be read back; later counters make up for them", { segment, lostBytes });
    }
    await service.#refreshBacklog();
    await service.flush();
    log.info("log replayed", { records: replayed, openSeries: meter.openSeries, backlog: service.#backlogBatches });
    return service;
  }

  /** Takes a frame and resolves when it is durable. A repeat resolves at once. */
  async ingest(frame: SampleFrame): Promise<void> {
    checkFrame(frame, this.#deps.clock.nowMs());
    const { hostId, hostEpoch, frameSeq } = frame;
    if (this.#meter.hasFrame(hostId, hostEpoch, Number(frameSeq))) return;
    if (hostEpoch < this.#meter.progress(hostId).epoch) {
      throw new ServiceError("STALE_HOST_EPOCH", "a later metald of this host has sent samples already");
    }
    if (this.#usedBytes >= this.#deps.limitBytes) throw this.#full("samples are not taken");
    await this.#append({ kind: "frame", frame });
  }

  /** All frames of the host's current epoch up to this one are durable. */
  progress(hostId: string): { epoch: bigint; frameSeq: number } {
    return this.#meter.progress(hostId);
  }

  async vmStarted(life: { tenantId: string; series: Series; baseline: Sample }): Promise<void> {
    checkLife(life, this.#deps.clock.nowMs());
    const { series, baseline } = life;
    switch (this.#meter.stateOf(fromSeriesMessage(series), fromSampleMessage(baseline))) {
      case "open":
        return;
      case "ended":
        throw new ServiceError("SERIES_ENDED", `incarnation ${series.incarnation} of ${series.vmId} has ended`);
      case "other":
        throw new ServiceError(
          "SERIES_CONFLICT",
          `incarnation ${series.incarnation} of ${series.vmId} began with another owner or baseline`,
        );
      case "unknown":
        if (this.#usedBytes >= this.#deps.limitBytes * admissionShare) throw this.#full("no new VM can be metered");
        if (this.#meter.openSeries >= maxOpenSeries) {
          throw new ServiceError("METER_LOG_FULL", `${maxOpenSeries} VMs are metered already`);
        }
        await this.#append({ kind: "started", series, baseline });
    }
  }

  /** Taken even when the log is full: it frees more than it needs. */
  async vmStopped(life: { tenantId: string; series: Series; baseline: Sample; final: Sample }): Promise<void> {
    checkLife(life, this.#deps.clock.nowMs());
    const { series, baseline, final } = life;
    if (this.#meter.stateOf(fromSeriesMessage(series), fromSampleMessage(baseline)) === "ended") return;
    await this.#append({ kind: "stopped", series, baseline, final });
  }

  /** The windows of a tenant's VM; another tenant's are as good as none. */
  windows(tenantId: string, vmId: string): { closed: UsageWindow[]; open: UsageWindow[] } {
    const { closed, open } = this.#meter.windows(vmId);
    const own = (window: UsageWindow) => window.series?.tenantId === tenantId;
    return { closed: closed.filter(own), open: open.filter(own) };
  }

  status(): Omit<MeteringStatus, "$typeName" | "$unknown"> {
    return {
      openSeries: this.#meter.openSeries,
      pendingBatches: BigInt(this.#backlogBatches + this.#unsaved.length),
      logBytes: BigInt(this.#usedBytes),
      logLimitBytes: BigInt(this.#deps.limitBytes),
      samplesTotal: BigInt(this.#meter.counts.samples),
    };
  }

  /** Moves the time of hosts on that send nothing, so that their minutes close; saves again what could not be saved. */
  async pass(): Promise<void> {
    const nowNs = this.#deps.clock.monotonicNs();
    for (const hostId of this.#meter.hostIds) {
      // After a start the silence counts from now: how long it lasted before, nobody knows.
      const heardNs = this.#heardNs.get(hostId) ?? nowNs;
      this.#heardNs.set(hostId, heardNs);
      const silentForMs = Number((nowNs - heardNs) / 1_000_000n);
      const { watermarkMs } = this.#meter.progress(hostId);
      const atMs = watermarkMs + silentForMs;
      if (silentForMs < silentMs || !this.#meter.closesMinute(hostId, atMs)) continue;
      await this.#append({ kind: "tick", hostId, atMs });
    }
    await this.flush();
  }

  /** Waits until every completed batch is in the store. */
  async flush(): Promise<void> {
    while (this.#unsaved.length > 0 || this.#checkpoint !== undefined) {
      this.#saving ??= this.#save().finally(() => {
        this.#saving = undefined;
      });
      await this.#saving;
    }
  }

  /** Called by the publisher when a batch has been confirmed. */
  async settled(batchId: string): Promise<void> {
    await this.#deps.store.settle(batchId);
    await this.#refreshBacklog();
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.#wal?.[Symbol.asyncDispose]();
    await this.flush().catch((error: unknown) => this.#deps.log.warn("batches stay in the log", { error }));
  }

  get #usedBytes(): number {
    return (this.#wal?.bytes ?? 0) + this.#backlogBytes;
  }

  #full(what: string): ServiceError {
    return new ServiceError("METER_LOG_FULL", `the meter's log is full: ${what}`, {
      metadata: { usedBytes: String(this.#usedBytes), limitBytes: String(this.#deps.limitBytes) },
    });
  }

  async #append(fact: Fact): Promise<void> {
    const wal = this.#wal;
    if (wal === undefined) throw new ServiceError("SHUTTING_DOWN", "the meter is not open");
    try {
      await wal.append(encodeFact(fact), (end) => this.#apply(fact, end));
    } catch (cause) {
      throw new ServiceError("METER_LOG_FAILED", "the meter's log could not be written", { cause });
    }
    if (this.#unsaved.length > 0 && !this.#saveFailed) {
      this.flush().catch((error: unknown) => this.#deps.log.error("batches could not be saved yet", { error }));
    }
  }

  #apply(fact: Fact, end: LogPosition): void {
    const batches = this.#meter.apply(fact);
    this.#heardNs.set(hostOf(fact), this.#deps.clock.monotonicNs());
    if (batches.length === 0) return;
    this.#unsaved.push(...batches.map(toPending));
    // Minutes close by frames and ticks; an end publishes at once and leaves the checkpoint where it is. While VMs are silent
    // nothing is gained by writing all their samples down again each minute: the log holds them.
    const closed = batches.some((batch) => batch.windows.length > 0);
    if (fact.kind !== "stopped" && (closed || this.#meter.openSamples <= maxIdleSnapshot)) {
      this.#checkpoint = { position: end, snapshot: this.#meter.snapshot() };
    }
  }

  async #save(): Promise<void> {
    const batches = [...this.#unsaved];
    const checkpoint = this.#checkpoint;
    this.#saveFailed = true;
    await this.#deps.store.save(batches, checkpoint);
    this.#saveFailed = false;
    this.#unsaved = this.#unsaved.slice(batches.length);
    if (this.#checkpoint === checkpoint) this.#checkpoint = undefined;
    if (checkpoint !== undefined) await this.#wal?.trim(checkpoint.position);
    await this.#refreshBacklog();
    this.#deps.news.call();
  }

  async #refreshBacklog(): Promise<void> {
    const { batches, bytes } = await this.#deps.store.backlog();
    this.#backlogBatches = batches;
    this.#backlogBytes = bytes;
  }
}

function toPending(batch: WindowBatch): PendingBatch {
  return { seq: Number(batch.batchSeq), ...encodeBatch(batch) };
}

function hostOf(fact: Fact): string {
  if (fact.kind === "frame") return fact.frame.hostId;
  return fact.kind === "tick" ? fact.hostId : fact.series.hostId;
}
