import { KeyObject } from "node:crypto";
import { causeChain, isServiceError } from "@unkey/base";

export const logLevels = ["trace", "debug", "info", "warn", "error"] as const;
export type LogLevel = (typeof logLevels)[number];

/** What happened, in machine-readable pieces. `error` may be any thrown value: its chain of causes is written. */
export type LogFields = Readonly<Record<string, unknown>>;

export interface Logger {
  trace(message: string, fields?: LogFields): void;
  debug(message: string, fields?: LogFields): void;
  info(message: string, fields?: LogFields): void;
  warn(message: string, fields?: LogFields): void;
  error(message: string, fields?: LogFields): void;
  /** A logger that adds `fields` to each of its lines. */
  child(fields: LogFields): Logger;
  /** False when lines of `level` are dropped: lets a hot path skip building its fields. */
  enabled(level: LogLevel): boolean;
}

export interface LoggerOptions {
  readonly level?: LogLevel;
  readonly fields?: LogFields;
  /** Takes one complete line, newline included. Defaults to stdout. */
  readonly write?: (line: string) => void;
  readonly nowMs?: () => number;
}

/** No string of a line is longer, so that a hostile request cannot flood the log. */
const maxStringLength = 4096;
const maxLineLength = 65_536;

/** Structured logs: one JSON object a line with `time`, `level`, `message` and the fields. */
export function createLogger(options: LoggerOptions = {}): Logger {
  const { level = "info", fields = {}, nowMs = Date.now } = options;
  const write = options.write ?? ((line) => void process.stdout.write(line));
  const threshold = logLevels.indexOf(level);
  const make = (bound: LogFields): Logger => {
    const at = (lineLevel: LogLevel) => (message: string, extra?: LogFields) => {
      if (logLevels.indexOf(lineLevel) < threshold) return;
      write(formatLine(new Date(nowMs()).toISOString(), lineLevel, message, { ...bound, ...extra }));
    };
    return {
      trace: at("trace"),
      debug: at("debug"),
      info: at("info"),
      warn: at("warn"),
      error: at("error"),
      child: (more) => make({ ...bound, ...more }),
      enabled: (asked) => logLevels.indexOf(asked) >= threshold,
    };
  };
  return make(fields);
}

function formatLine(time: string, level: LogLevel, message: string, fields: LogFields): string {
  let line: string;
  try {
    line = JSON.stringify({ time, level, message, ...fields }, safeValue);
  } catch {
    // A circular value or a throwing getter must not cost the message.
    line = JSON.stringify({ time, level, message: safeValue("", message), unprintableFields: Object.keys(fields) });
  }
  if (line.length > maxLineLength) {
    line = JSON.stringify({ time, level, message: safeValue("", message), oversizeFields: Object.keys(fields) });
  }
  return `${line}\n`;
}

/** JSON.stringify's replacer. It runs after `toJSON`, so a Secret has already hidden itself. */
function safeValue(_key: string, value: unknown): unknown {
  if (typeof value === "string") {
    if (value.includes("PRIVATE KEY-----")) return "[secret]";
    return value.length > maxStringLength ? `${value.slice(0, maxStringLength)}… (${value.length} characters)` : value;
  }
  if (typeof value === "bigint") return value.toString();
  if (value instanceof KeyObject) return "[secret]";
  if (value instanceof Error) return describeError(value);
  if (ArrayBuffer.isView(value)) return `(${value.byteLength} bytes)`;
  if (value instanceof Map) return Object.fromEntries(value);
  if (value instanceof Set) return [...value];
  return value;
}

/** The chain of causes, and the stack where it is ours to fix (a ServiceError was thrown on purpose). */
function describeError(error: Error): Record<string, unknown> {
  return {
    causes: causeChain(error),
    ...(isServiceError(error) ? { reason: error.reason, ...error.metadata } : {}),
    ...(isServiceError(error) && error.cause === undefined ? {} : { stack: innermost(error).stack }),
  };
}

function innermost(error: Error): Error {
  let at = error;
  for (let depth = 0; depth < 16 && at.cause instanceof Error; depth++) at = at.cause;
  return at;
}
