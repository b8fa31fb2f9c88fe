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
    const entry: unknown = answer.find((candidate: unknown) => field(candidate, "node-name") === drive);
    const stats = field(entry, "stats");
    return {
      drive,
      readBytes: counter(stats, "rd_bytes"),
      writeBytes: counter(stats, "wr_bytes"),
      readOperations: counter(stats, "rd_operations"),
      writeOperations: counter(stats, "wr_operations"),
      flushOperations: counter(stats, "flush_operations"),
    };
  });
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
