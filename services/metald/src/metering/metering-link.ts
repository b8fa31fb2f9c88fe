import { create } from "@bufbuild/protobuf";
import type { Client } from "@connectrpc/connect";
import { type MeteringService, type SampleFrame, SampleFrameSchema } from "@unkey/api/metering";
import { backoffDelayMs, type Clock, type HostId, isServiceError, ServiceError, type VmId } from "@unkey/base";
import type { Logger } from "@unkey/daemon";
import type { Series } from "../domain/sample.ts";
import type { SeriesStore } from "../ports.ts";
import { FrameBuffer } from "./frame-buffer.ts";
import { toSampleMessage, toSeriesMessage } from "./messages.ts";
import type { Tick } from "./sampler.ts";

export interface MeteringLinkDeps {
  readonly client: Client<typeof MeteringService>;
  readonly series: SeriesStore;
  readonly hostId: HostId;
  /** Grows with each start of this metald. */
  readonly epoch: number;
  readonly clock: Clock;
  readonly log: Logger;
}

/** Ten minutes of ticks. */
const maxUnconfirmedFrames = 6_000;
const reconnect = { baseMs: 100, maxMs: 5_000 };
const notifyTimeoutMs = 2_000;
const stopRetryMs = 1_000;

/**
 * The way to billaged. One stream carries a frame per tick; frames stay until they are confirmed and are sent again after a
 * reconnect. Begins and ends of incarnations are rows until billaged has them: begins go before the first frame of a
 * connection, an end after the last frame that the series is part of. VMs run on while billaged is away.
 */
export class MeteringLink implements AsyncDisposable {
  readonly #deps: MeteringLinkDeps;
  readonly #frames = new FrameBuffer<SampleFrame>(maxUnconfirmedFrames);
  readonly #stop = new AbortController();
  readonly #running: Promise<unknown>;
  /** By series: the last frame that can hold it. Ends of earlier epochs have none. */
  readonly #lastFrames = new Map<string, bigint>();
  #frameSeq = 0n;
  #state: "connecting" | "connected" | "down" = "connecting";
  #connection = new AbortController();
  #stopsPending = Promise.withResolvers<void>();

  constructor(deps: MeteringLinkDeps) {
    this.#deps = deps;
    this.#running = Promise.all([this.#keepConnected(), this.#deliverStops()]);
  }

  /** What an operator wants to know: whether billaged hears us, and how much it has still to hear. */
  get status(): { readonly connected: boolean; readonly unconfirmedFrames: number; readonly droppedFrames: number } {
    return {
      connected: this.#state === "connected",
      unconfirmedFrames: this.#frames.length,
      droppedFrames: this.#frames.droppedCount,
    };
  }

  push(tick: Tick): void {
    const { hostId, epoch } = this.#deps;
    const column = (value: (c: Tick["columns"][number]) => number) => tick.columns.map(value);
    this.#frameSeq++;
    this.#frames.push(
      create(SampleFrameSchema, {
        hostId,
        hostEpoch: BigInt(epoch),
        frameSeq: this.#frameSeq,
        atMs: BigInt(tick.atMs),
        vmIds: tick.columns.map((c) => c.vmId),
        incarnations: column((c) => c.incarnation),
        seqs: column((c) => c.sample.seq),
        cpuTimeUs: column((c) => c.sample.cpuTimeUs),
        diskReadBytes: column((c) => c.sample.diskReadBytes),
        diskWriteBytes: column((c) => c.sample.diskWriteBytes),
        netInBytes: column((c) => c.sample.netInBytes),
        netOutBytes: column((c) => c.sample.netOutBytes),
        memoryAllocatedBytes: column((c) => c.sample.memoryAllocatedBytes),
        memoryResidentBytes: column((c) => c.sample.memoryResidentBytes),
        diskAllocatedBytes: column((c) => c.sample.diskAllocatedBytes),
      }),
    );
  }

  /**
   * Tells billaged of a new incarnation before its guest starts. Resolves when it knows, and also when it cannot be
   * reached: the row is delivered later. Throws METERING_REFUSED when it has no room: then the guest must not start.
   */
  async announceStart(series: Series, signal: AbortSignal): Promise<void> {
    if (this.#state === "down" || series.startConfirmed) return;
    try {
      await this.#sendStart(series, signal);
    } catch (error) {
      if (isServiceError(error) && error.code === "resource_exhausted") {
        const message = "the meter takes no new VMs, because its log is full";
        throw new ServiceError("METERING_REFUSED", message, { cause: error });
      }
      signal.throwIfAborted();
      this.#deps.log.warn("billaged was not told of a VM's start; it will be", { vmId: series.vmId, error });
      this.#connection.abort(error); // the next connection begins with what is missing
    }
  }

  /** The end of an incarnation is in the store. */
  announceStop(vmId: VmId, incarnation: number): void {
    this.#lastFrames.set(`${vmId}/${incarnation}`, this.#frameSeq);
    this.#stopsPending.resolve();
  }

  async [Symbol.asyncDispose](): Promise<void> {
    this.#stop.abort();
    this.#connection.abort(this.#stop.signal.reason);
    this.#stopsPending.resolve();
    await this.#running;
  }

  async #keepConnected(): Promise<void> {
    const { clock, log } = this.#deps;
    for (let attempt = 0; !this.#stop.signal.aborted; attempt++) {
      this.#connection = new AbortController();
      try {
        await this.#connect(this.#connection.signal, () => (attempt = 0));
      } catch (error) {
        if (this.#stop.signal.aborted) return;
        if (this.#state !== "down") log.warn("billaged cannot be reached; samples are kept", { error });
      }
      this.#state = "down";
      await clock.sleep(backoffDelayMs(reconnect, attempt), this.#stop.signal).catch(() => undefined);
    }
  }

  async #connect(signal: AbortSignal, onAnswer: () => void): Promise<void> {
    const { client, series, epoch, log } = this.#deps;
    for (const begun of await series.unconfirmedStarts()) {
      await this.#sendStart(begun, signal).catch((error: unknown) => {
        if (!isServiceError(error) || isPassing(error)) throw error;
        log.error("billaged refuses a VM that runs", { vmId: begun.vmId, incarnation: begun.incarnation, error });
      });
    }
    if (this.#state === "down") log.info("billaged is back");
    this.#state = "connected";
    this.#stopsPending.resolve();
    for await (const ack of client.streamSamples(this.#frames.from(signal), { signal })) {
      onAnswer();
      if (ack.hostEpoch !== BigInt(epoch)) continue;
      this.#frames.confirm(ack.frameSeq);
      if (this.#lastFrames.size > 0) this.#stopsPending.resolve();
    }
    if (!signal.aborted) throw new ServiceError("DEPENDENCY_UNAVAILABLE", "billaged ended the stream of samples");
  }

  async #sendStart(series: Series, signal: AbortSignal): Promise<void> {
    const { client, hostId } = this.#deps;
    await client.notifyVmStarted(
      {
        tenantId: series.tenantId,
        series: toSeriesMessage(hostId, series),
        baseline: toSampleMessage(series.baseline),
      },
      { signal, timeoutMs: notifyTimeoutMs },
    );
    await this.#deps.series.confirmStart(series.vmId, series.incarnation);
  }

  async #deliverStops(): Promise<void> {
    const { clock, log } = this.#deps;
    while (!this.#stop.signal.aborted) {
      await this.#stopsPending.promise;
      this.#stopsPending = Promise.withResolvers();
      if (this.#state !== "connected") continue; // a new connection wakes this loop again
      try {
        await this.#deliverDueStops();
      } catch (error) {
        if (this.#stop.signal.aborted) return;
        log.warn("billaged was not told of a VM's end; it will be", { error });
        await clock.sleep(stopRetryMs, this.#stop.signal).catch(() => undefined);
        this.#stopsPending.resolve();
      }
    }
  }

  async #deliverDueStops(): Promise<void> {
    const { client, series: store, hostId } = this.#deps;
    for (const series of await store.unconfirmedStops()) {
      const key = `${series.vmId}/${series.incarnation}`;
      const { final } = series;
      // Not due while frames of the series are under way: the window closes with this message.
      if (!final || (this.#lastFrames.get(key) ?? 0n) > this.#frames.settledSeq) continue;
      await client.notifyVmStopped(
        {
          tenantId: series.tenantId,
          series: toSeriesMessage(hostId, series),
          baseline: toSampleMessage(series.baseline),
          final: toSampleMessage(final),
        },
        { signal: this.#stop.signal, timeoutMs: notifyTimeoutMs },
      );
      await store.confirmStop(series.vmId, series.incarnation);
      this.#lastFrames.delete(key);
    }
  }
}

/** A failure of the connection, which another one may not have; anything else is billaged's considered answer. */
function isPassing(error: ServiceError): boolean {
  return error.code === "unavailable" || error.code === "deadline_exceeded" || error.code === "canceled";
}
