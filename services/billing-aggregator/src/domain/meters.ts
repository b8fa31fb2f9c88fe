/** What was used, exact, in base units. */
export interface Quantities {
  readonly cpuTimeUs: bigint;
  /** Allocated memory over time. */
  readonly memoryByteMs: bigint;
  /** Used memory over time: shown, never billed. */
  readonly memoryResidentByteMs: bigint;
  readonly diskByteMs: bigint;
  readonly diskReadBytes: bigint;
  readonly diskWriteBytes: bigint;
  readonly netInBytes: bigint;
  readonly netOutBytes: bigint;
}

export const noUsage: Quantities = {
  cpuTimeUs: 0n,
  memoryByteMs: 0n,
  memoryResidentByteMs: 0n,
  diskByteMs: 0n,
  diskReadBytes: 0n,
  diskWriteBytes: 0n,
  netInBytes: 0n,
  netOutBytes: 0n,
};

export function addQuantities(a: Quantities, b: Quantities): Quantities {
  return {
    cpuTimeUs: a.cpuTimeUs + b.cpuTimeUs,
    memoryByteMs: a.memoryByteMs + b.memoryByteMs,
    memoryResidentByteMs: a.memoryResidentByteMs + b.memoryResidentByteMs,
    diskByteMs: a.diskByteMs + b.diskByteMs,
    diskReadBytes: a.diskReadBytes + b.diskReadBytes,
    diskWriteBytes: a.diskWriteBytes + b.diskWriteBytes,
    netInBytes: a.netInBytes + b.netInBytes,
    netOutBytes: a.netOutBytes + b.netOutBytes,
  };
}

/** Everything that can have a price, in the order in which a line shows it. */
export const meters = [
  { name: "cpu_time", unit: "us", quantity: "cpuTimeUs" },
  { name: "memory", unit: "byte_ms", quantity: "memoryByteMs" },
  { name: "disk", unit: "byte_ms", quantity: "diskByteMs" },
  { name: "net_out", unit: "bytes", quantity: "netOutBytes" },
  { name: "net_in", unit: "bytes", quantity: "netInBytes" },
  { name: "disk_read", unit: "bytes", quantity: "diskReadBytes" },
  { name: "disk_write", unit: "bytes", quantity: "diskWriteBytes" },
] as const satisfies readonly { name: string; unit: string; quantity: keyof Quantities }[];

export type MeterName = (typeof meters)[number]["name"];

export function isMeterName(text: string): text is MeterName {
  return meters.some(({ name }) => name === text);
}
