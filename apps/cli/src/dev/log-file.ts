import { closeSync, copyFileSync, existsSync, openSync, readSync, renameSync, statSync, truncateSync } from "node:fs";

/** A log never takes more than this, its older part included. */
const maxLogBytes = 10 * 1024 * 1024;

/**
 * Opens a log for a process to write to by itself: what it says reaches the file even when its supervisor has died.
 * Appending is what makes rotation safe below.
 */
export function openLog(path: string): number {
  return openSync(path, "a", 0o600);
}

/**
 * Keeps a log and one older part of it. The process holds the file open, so the content is copied away and the file cut:
 * an appending writer goes on at the new end. Lines written between the copy and the cut are lost.
 */
export function rotateLog(path: string, maxBytes: number = maxLogBytes): boolean {
  const size = logSize(path);
  if (size <= maxBytes / 2) return false;
  copyFileSync(path, `${path}.1.tmp`);
  renameSync(`${path}.1.tmp`, `${path}.1`);
  truncateSync(path, 0);
  return true;
}

export function logSize(path: string): number {
  return existsSync(path) ? statSync(path).size : 0;
}

const tailBytes = 64 * 1024;

/** The last lines of a log that were written after `fromByte`, for people. */
export function lastLines(path: string, count: number, fromByte = 0): string[] {
  const size = logSize(path);
  // Cut by a rotation meanwhile: everything in it is newer.
  const begin = Math.max(size < fromByte ? 0 : fromByte, size - tailBytes);
  if (size === begin) return [];
  const bytes = Buffer.alloc(size - begin);
  const fd = openSync(path, "r");
  try {
    readSync(fd, bytes, 0, bytes.length, begin);
  } finally {
    closeSync(fd);
  }
  const lines = bytes
    .toString("utf8")
    .split("\n")
    // Where an error was thrown is for the log itself; what it was is for people.
    .filter((line) => line.trim() !== "" && !/^\s+at /.test(line));
  return lines.slice(-count).map(readable);
}

/** One of our daemons' JSON lines as a sentence; other lines as they are. */
function readable(line: string): string {
  try {
    const { level, message, error } = JSON.parse(line) as {
      level?: string;
      message?: string;
      error?: { causes?: string[] };
    };
    if (typeof message !== "string") return line;
    return [`${level ?? "info"}: ${message}`, ...(error?.causes ?? [])].join(": ");
  } catch {
    return line;
  }
}
