import { ServiceError } from "@unkey/base";
import type { BlockCounters, DriveId } from "./hypervisor.ts";

const driveIds: readonly DriveId[] = ["base", "upper", "config"];

/** The run state in an answer to `query-status`. */
export function readRunState(answer: unknown): string {
  const status = field(answer, "status");
  return typeof status === "string" ? status : nonsense("query-status");
}

/** The drives' counters in an answer to `query-blockstats`. */
export function readBlockStats(answer: unknown): BlockCounters[] {
  if (!Array.isArray(answer)) return nonsense("query-blockstats");
  return driveIds.map((drive) => {
    const whole = answer.find((entry: unknown) => field(entry, "node-name") === drive) as unknown;
    const parts = answer.filter((entry: unknown) => isPartOf(drive, field(entry, "node-name"))) as unknown[];
    const stats = [whole, ...parts].map((entry) => field(entry, "stats"));
    const sum = (name: string): bigint => stats.reduce((total: bigint, each) => total + counter(each, name), 0n);
    return {
      drive,
      readBytes: sum("rd_bytes"),
      writeBytes: sum("wr_bytes"),
      readOperations: sum("rd_operations"),
      writeOperations: sum("wr_operations"),
      flushOperations: sum("flush_operations"),
    };
  });
}

function isPartOf(drive: DriveId, nodeName: unknown): boolean {
  return typeof nodeName === "string" && nodeName.startsWith(`${drive}.`);
}

function counter(stats: unknown, name: string): bigint {
  const value = field(stats, name);
  return typeof value === "number" && Number.isInteger(value) && value >= 0
    ? BigInt(value)
    : nonsense("query-blockstats");
}

function field(value: unknown, name: string): unknown {
  return typeof value === "object" && value !== null ? (value as Record<string, unknown>)[name] : undefined;
}

function nonsense(command: string): never {
  throw new ServiceError("VMM_UNAVAILABLE", `the monitor's answer to ${command} is not understood`);
}
