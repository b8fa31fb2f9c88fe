import { closeSync, fstatSync, openSync, readSync } from "node:fs";
import type { CounterFiles } from "@unkey/cgroup";
import { tapName } from "../domain/network-rules.ts";
import type { HostCounters, HostReading } from "../ports.ts";
import { runCommand } from "./run-command.ts";

/** Where one VM's usage shows on the host. What is left out reads as NaN. */
export interface CounterSources {
  readonly cgroup?: CounterFiles | undefined;
  /** A process inside the VM's netns: its /proc entry opens the netns, and the open file keeps it readable afterwards. */
  readonly pid?: number | undefined;
  /** The VM's private layer. */
  readonly layerPath: string;
}

/** What a dead VM's tap had counted, from a netns that no process lives in any more. */
export interface TapBytes {
  readonly rxBytes: number;
  readonly txBytes: number;
}

const zero = 0x30;
const nine = 0x39;
const blockBytes = 512;

/** One buffer for all VMs: readings are synchronous. Larger than any of the files. */
const buffer = Buffer.alloc(16 * 1024);

/**
 * The cumulative counters of one VM through files that are opened once and read by one `pread` each, so that a tick costs
 * microseconds per VM. A source that cannot be opened or read is NaN, never 0.
 */
export class LinuxCounters implements HostCounters {
  readonly #cpu: number | undefined;
  readonly #cpuFormat: CounterFiles["cpu"]["format"] | undefined;
  readonly #memory: number | undefined;
  readonly #network: number | undefined;
  readonly #layer: number | undefined;
  readonly #tap: TapBytes | undefined;
  #closed = false;

  private constructor(sources: CounterSources, tap: TapBytes | undefined) {
    this.#cpu = openOrNothing(sources.cgroup?.cpu.path);
    this.#cpuFormat = sources.cgroup?.cpu.format;
    this.#memory = openOrNothing(sources.cgroup?.memory);
    this.#network = openOrNothing(sources.pid === undefined ? undefined : `/proc/${sources.pid}/net/dev`);
    this.#layer = openOrNothing(sources.layerPath);
    this.#tap = tap;
  }

  static ofProcess(sources: CounterSources): LinuxCounters {
    return new LinuxCounters(sources, undefined);
  }

  /** For a VM whose process has ended while nobody watched. */
  static async ofRemains(sources: CounterSources, netns: string): Promise<LinuxCounters> {
    return new LinuxCounters(sources, await readTap(netns));
  }

  read(): HostReading {
    const network = this.#readNetwork();
    return {
      cpuTimeUs: this.#readCpu(),
      memoryResidentBytes: number(this.#memory, 0),
      diskAllocatedBytes: this.#readLayer(),
      // What the tap receives is what the guest has sent.
      netOutBytes: network.rxBytes,
      netInBytes: network.txBytes,
    };
  }

  close(): void {
    if (this.#closed) return;
    this.#closed = true;
    for (const fd of [this.#cpu, this.#memory, this.#network, this.#layer]) if (fd !== undefined) closeSync(fd);
  }

  #readCpu(): number {
    if (this.#cpuFormat === "cpuacct.usage") return Math.floor(number(this.#cpu, 0) / 1000);
    const length = fill(this.#cpu);
    const at = buffer.subarray(0, length).indexOf("usage_usec ");
    return at < 0 ? Number.NaN : digitsAt(at + "usage_usec ".length, length);
  }

  #readNetwork(): TapBytes {
    if (this.#tap) return this.#tap;
    const length = fill(this.#network);
    const at = buffer.subarray(0, length).indexOf(`${tapName}:`);
    if (at < 0) return { rxBytes: Number.NaN, txBytes: Number.NaN };
    // "tap0: <rx bytes> <7 more> <tx bytes> …" (proc_pid_net(5))
    let cursor = at + tapName.length + 1;
    const columns: number[] = [];
    while (columns.length < 9 && cursor < length) {
      while (cursor < length && buffer[cursor] === 0x20) cursor++;
      columns.push(digitsAt(cursor, length));
      while (cursor < length && isDigit(buffer[cursor])) cursor++;
    }
    return { rxBytes: columns[0] ?? Number.NaN, txBytes: columns[8] ?? Number.NaN };
  }

  #readLayer(): number {
    if (this.#layer === undefined || this.#closed) return Number.NaN;
    try {
      return fstatSync(this.#layer).blocks * blockBytes;
    } catch {
      return Number.NaN;
    }
  }
}

/** Reads the tap's counters with a process of its own: too slow for a tick, right for a last look. */
async function readTap(netns: string): Promise<TapBytes | undefined> {
  try {
    const json: unknown = JSON.parse(
      await runCommand("ip", ["-netns", netns, "-statistics", "-json", "link", "show", tapName]),
    );
    const [link] = json as { stats64?: { rx?: { bytes?: number }; tx?: { bytes?: number } } }[];
    const [rxBytes, txBytes] = [link?.stats64?.rx?.bytes, link?.stats64?.tx?.bytes];
    return rxBytes === undefined || txBytes === undefined ? undefined : { rxBytes, txBytes };
  } catch {
    return undefined;
  }
}

function openOrNothing(path: string | undefined): number | undefined {
  if (path === undefined) return undefined;
  try {
    return openSync(path, "r");
  } catch {
    return undefined;
  }
}

/** Reads the whole file into the shared buffer; 0 when it cannot be read. */
function fill(fd: number | undefined): number {
  if (fd === undefined) return 0;
  try {
    return readSync(fd, buffer, 0, buffer.length, 0);
  } catch {
    return 0;
  }
}

function number(fd: number | undefined, offset: number): number {
  const length = fill(fd);
  return digitsAt(offset, length);
}

function isDigit(byte: number | undefined): boolean {
  return byte !== undefined && byte >= zero && byte <= nine;
}

/** The decimal number at `offset` of the shared buffer; NaN when there is none. */
function digitsAt(offset: number, length: number): number {
  let value = 0;
  let cursor = offset;
  for (; cursor < length && isDigit(buffer[cursor]); cursor++) value = value * 10 + (buffer[cursor] ?? zero) - zero;
  return cursor === offset ? Number.NaN : value;
}
