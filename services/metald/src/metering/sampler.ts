import type { Clock, VmId } from "@unkey/base";
import type { VmProcess } from "@unkey/vmm";
import { type Sample, type Series, seqAt, tickMs } from "../domain/sample.ts";
import type { HostCounters } from "../ports.ts";

/** What one tick read, one element per VM. */
export interface Tick {
  readonly atMs: number;
  readonly columns: readonly { readonly vmId: VmId; readonly incarnation: number; readonly sample: Sample }[];
}

interface BlockBytes {
  readonly diskReadBytes: number;
  readonly diskWriteBytes: number;
}

export const noBlockBytes: BlockBytes = { diskReadBytes: Number.NaN, diskWriteBytes: Number.NaN };

/** A minute of ticks: telling billaged of a start is given up long before. */
const maxHeldSamples = 600;

/** A reading of disk counters may be this old in a sample: it is asked for at one tick and arrives before the next. */
const maxBlockAgeTicks = 3;

/** Everything about one VM that is read at each tick. */
class Meter {
  readonly series: Series;
  readonly counters: HostCounters;
  readonly process: VmProcess;
  readonly memoryAllocatedBytes: number;
  readonly #closing = new AbortController();
  #lastSeq = 0;
  /** Samples that wait for billaged to hear of the series; undefined once they go with the tick. */
  held: Sample[] | undefined;
  #block: BlockBytes = noBlockBytes;
  #blockAgeTicks = 0;
  #blockAsked = false;

  constructor(series: Series, counters: HostCounters, process: VmProcess, memoryAllocatedBytes: number) {
    this.series = series;
    this.counters = counters;
    this.process = process;
    this.memoryAllocatedBytes = memoryAllocatedBytes;
  }

  sample(atMs: number, block: BlockBytes): Sample {
    this.#lastSeq = seqAt(this.series.baseline, atMs, this.#lastSeq);
    return sampleOf(
      { seq: this.#lastSeq, atMs, memoryAllocatedBytes: this.memoryAllocatedBytes },
      this.counters,
      block,
    );
  }

  /** The sample of one tick. The hypervisor answers between ticks, so disk counters are those of the tick before. */
  tick(atMs: number): Sample {
    const block = this.#blockAgeTicks <= maxBlockAgeTicks ? this.#block : noBlockBytes;
    this.#blockAgeTicks++;
    if (!this.#blockAsked) void this.#askForBlock();
    return this.sample(atMs, block);
  }

  close(): void {
    this.#closing.abort();
    this.counters.close();
  }

  async #askForBlock(): Promise<void> {
    this.#blockAsked = true;
    this.#block = await readBlock(this.process, this.#closing.signal);
    this.#blockAgeTicks = 0;
    this.#blockAsked = false;
  }
}

/**
 * Reads every VM of the host each 100 ms: a few `pread`s per VM in one synchronous pass. Baseline and final sample of an
 * incarnation are read here too, by the same code.
 */
export class Sampler {
  readonly #clock: Clock;
  readonly #onTick: (tick: Tick) => void;
  readonly #meters = new Map<VmId, Meter>();

  constructor(options: { readonly clock: Clock; readonly onTick: (tick: Tick) => void }) {
    this.#clock = options.clock;
    this.#onTick = options.onTick;
  }

  get size(): number {
    return this.#meters.size;
  }

  /** Counters before the guest's first instruction. */
  async baseline(process: VmProcess, counters: HostCounters, memoryAllocatedBytes: number): Promise<Sample> {
    const block = await readBlock(process, AbortSignal.timeout(blockDeadlineMs));
    return sampleOf({ seq: 0, atMs: this.#clock.nowMs(), memoryAllocatedBytes }, counters, block);
  }

  /** Reads this VM from the next tick on. It owns `counters` then. */
  add(series: Series, process: VmProcess, counters: HostCounters, memoryAllocatedBytes: number): void {
    this.#meters.get(series.vmId)?.close();
    this.#meters.set(series.vmId, new Meter(series, counters, process, memoryAllocatedBytes));
  }

  /** Keeps back what is read of this VM until `release`: billaged drops samples of a series that it has not heard of. */
  hold(vmId: VmId): void {
    const meter = this.#meters.get(vmId);
    if (meter) meter.held ??= [];
  }

  /** Sends what was kept back, each sample with the instant of its tick, and the coming ones as they are read. */
  release(vmId: VmId): void {
    const meter = this.#meters.get(vmId);
    if (!meter) return;
    const { incarnation } = meter.series;
    for (const sample of meter.held ?? [])
      this.#onTick({ atMs: sample.atMs, columns: [{ vmId, incarnation, sample }] });
    meter.held = undefined;
  }

  /** Stops reading this VM without a final sample. */
  forget(vmId: VmId): void {
    this.#meters.get(vmId)?.close();
    this.#meters.delete(vmId);
  }

  has(vmId: VmId): boolean {
    return this.#meters.has(vmId);
  }

  /** Disk counters as they are now; NaN when the hypervisor does not say. */
  async readBlock(process: VmProcess): Promise<BlockBytes> {
    return readBlock(process, AbortSignal.timeout(blockDeadlineMs));
  }

  /** The last sample of a VM whose process has gone; it is not read again. Undefined when the VM is not being read. */
  finish(vmId: VmId, block: BlockBytes): Sample | undefined {
    const meter = this.#meters.get(vmId);
    if (!meter) return undefined;
    this.#meters.delete(vmId);
    const sample = meter.sample(this.#clock.nowMs(), block);
    meter.close();
    return sample;
  }

  /** One pass over all VMs. */
  tick(): void {
    const atMs = this.#clock.nowMs();
    const columns: Tick["columns"][number][] = [];
    for (const meter of this.#meters.values()) {
      const sample = meter.tick(atMs);
      const { vmId, incarnation } = meter.series;
      if (meter.held === undefined) columns.push({ vmId, incarnation, sample });
      else if (meter.held.length < maxHeldSamples) meter.held.push(sample);
    }
    if (columns.length > 0) this.#onTick({ atMs, columns });
  }

  /** Lets go of every VM; none ends by it. */
  close(): void {
    for (const meter of this.#meters.values()) meter.close();
    this.#meters.clear();
  }
}

/** A final sample of counters that no meter held. */
export function finalSample(
  series: Series,
  counters: HostCounters,
  options: { readonly atMs: number; readonly memoryAllocatedBytes: number },
): Sample {
  const { atMs, memoryAllocatedBytes } = options;
  return sampleOf({ seq: seqAt(series.baseline, atMs, 0), atMs, memoryAllocatedBytes }, counters, noBlockBytes);
}

const blockDeadlineMs = 20 * tickMs;

async function readBlock(process: VmProcess, signal: AbortSignal): Promise<BlockBytes> {
  try {
    let [read, written] = [0n, 0n];
    for (const drive of await process.readBlockCounters(signal)) {
      read += drive.readBytes;
      written += drive.writeBytes;
    }
    return { diskReadBytes: Number(read), diskWriteBytes: Number(written) };
  } catch {
    return noBlockBytes; // absent, not zero; the next tick asks again
  }
}

function sampleOf(
  head: Pick<Sample, "seq" | "atMs" | "memoryAllocatedBytes">,
  counters: HostCounters,
  block: BlockBytes,
): Sample {
  const host = counters.read();
  return { ...head, ...host, ...block };
}
