/** How the app ended: one of the two is set. */
export type AppExit = { readonly code: number } | { readonly signal: number };

/** The sum of what a guest's init has said on its control port. It is the guest's word: never bill or trust by it. */
export interface GuestReport {
  /** Seconds of guest uptime when the app was started. */
  readonly startedAtUptimeSeconds?: number;
  /** The init has taken a request to stop. */
  readonly stopping?: true;
  readonly exited?: AppExit;
  /** The guest could not get to the app: which step failed and how. */
  readonly failed?: { readonly step: string; readonly reason: string };
}

/** No line of the init is longer; a longer one is not from our init. */
export const maxControlLineBytes = 4096;

const maxTextLength = 1024;

/**
 * `report` with one control line added; the same object when the line is not one of ours. First word wins: a guest that
 * reported an exit cannot change it. The lines are those of guest/README.md.
 */
export function foldControlLine(report: GuestReport, line: string): GuestReport {
  const message = parseLine(line);
  switch (message?.["type"]) {
    case "started": {
      const uptime = message["uptimeSeconds"];
      if (report.startedAtUptimeSeconds !== undefined || typeof uptime !== "number" || uptime < 0) return report;
      return { ...report, startedAtUptimeSeconds: uptime };
    }
    case "stopping":
      return report.stopping ? report : { ...report, stopping: true };
    case "exited": {
      if (report.exited !== undefined) return report;
      const { code, signal } = message;
      if (isIntegerUpTo(code, 255)) return { ...report, exited: { code } };
      if (isIntegerUpTo(signal, 64)) return { ...report, exited: { signal } };
      return report;
    }
    case "failed": {
      const { step, reason } = message;
      if (report.failed !== undefined || typeof step !== "string" || typeof reason !== "string") return report;
      return { ...report, failed: { step: step.slice(0, maxTextLength), reason: reason.slice(0, maxTextLength) } };
    }
    default:
      return report;
  }
}

function parseLine(line: string): Record<string, unknown> | undefined {
  if (line.length > maxControlLineBytes) return undefined;
  try {
    const value: unknown = JSON.parse(line);
    return typeof value === "object" && value !== null ? (value as Record<string, unknown>) : undefined;
  } catch {
    return undefined;
  }
}

function isIntegerUpTo(value: unknown, max: number): value is number {
  return typeof value === "number" && Number.isInteger(value) && value >= 0 && value <= max;
}
