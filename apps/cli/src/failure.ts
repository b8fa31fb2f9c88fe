import { type ErrorCode, isServiceError } from "@unkey/base";

/**
 * What the process answers to its caller. Scripts switch on these, so they are never renumbered:
 * 1 anything else, 2 wrong usage or input, 3 not found, 4 who are you or you may not, 5 nobody answers or not in time,
 * 130 interrupted (128 + SIGINT, as shells count).
 */
export const exitCodes = {
  ok: 0,
  failed: 1,
  usage: 2,
  notFound: 3,
  auth: 4,
  unavailable: 5,
  interrupted: 130,
} as const;

export type ExitCode = (typeof exitCodes)[keyof typeof exitCodes];

export interface FailureOptions {
  readonly nextStep: string;
  readonly exitCode?: ExitCode;
  /** A key of the error catalogue, where a service gave one. */
  readonly reason?: string;
  /** Evidence between the two lines, such as the last lines of a log. */
  readonly evidence?: readonly string[];
  readonly cause?: unknown;
}

/** Ends a command: one line says what is wrong, one what to do now. */
export class CliFailure extends Error {
  readonly nextStep: string;
  readonly exitCode: ExitCode;
  readonly reason: string | undefined;
  readonly evidence: readonly string[];

  constructor(what: string, options: FailureOptions) {
    super(what, "cause" in options ? { cause: options.cause } : undefined);
    this.name = "CliFailure";
    this.nextStep = options.nextStep;
    this.exitCode = options.exitCode ?? exitCodes.failed;
    this.reason = options.reason;
    this.evidence = options.evidence ?? [];
  }
}

/** Wrong input that the CLI finds by itself: exit code 2. */
export function usageFailure(what: string, nextStep: string, cause?: unknown): CliFailure {
  return new CliFailure(what, { nextStep, exitCode: exitCodes.usage, ...(cause === undefined ? {} : { cause }) });
}

/** The user pressed Ctrl-C; `hint` says what goes on without us. */
export class Interrupted extends Error {
  readonly hint: string;

  constructor(hint = "") {
    super("interrupted");
    this.name = "Interrupted";
    this.hint = hint;
  }
}

export function exitCodeOf(code: ErrorCode): ExitCode {
  switch (code) {
    case "invalid_argument":
    case "out_of_range":
      return exitCodes.usage;
    case "not_found":
      return exitCodes.notFound;
    case "unauthenticated":
    case "permission_denied":
      return exitCodes.auth;
    case "unavailable":
    case "deadline_exceeded":
      return exitCodes.unavailable;
    case "canceled":
    case "unknown":
    case "already_exists":
    case "resource_exhausted":
    case "failed_precondition":
    case "aborted":
    case "unimplemented":
    case "internal":
    case "data_loss":
      return exitCodes.failed;
  }
}

/** Any thrown value as a failure with a next step. */
export function failureOf(error: unknown): CliFailure {
  if (error instanceof CliFailure) return error;
  if (error instanceof Interrupted) {
    return new CliFailure("interrupted", { nextStep: error.hint, exitCode: exitCodes.interrupted });
  }
  if (isServiceError(error)) {
    const { message, nextStep, reason, code, cause } = error;
    return new CliFailure(message, { nextStep, reason, exitCode: exitCodeOf(code), cause });
  }
  const cause = error instanceof Error ? error : new Error(String(error));
  const system = cause as NodeJS.ErrnoException;
  if (system.code !== undefined && system.syscall !== undefined) {
    return new CliFailure(systemMessage(system), { nextStep: "Correct that and run the command again.", cause });
  }
  return new CliFailure(`unexpected: ${cause.message}`, {
    nextStep: "Run it again with UNKEY_DEBUG=1 and report the trace that it prints.",
    cause,
  });
}

const systemMessages: Readonly<Record<string, string>> = {
  ENOENT: "does not exist",
  EACCES: "may not be accessed by this user",
  EPERM: "may not be accessed by this user",
  EISDIR: "is a directory",
  ENOTDIR: "is not a directory",
  ENOSPC: "cannot be written: the disk is full",
  EROFS: "cannot be written: the file system is read-only",
};

function systemMessage(error: NodeJS.ErrnoException): string {
  const known = systemMessages[error.code ?? ""];
  return known !== undefined && error.path !== undefined ? `${error.path} ${known}` : error.message;
}
