import type { DeploymentFailure } from "@unkey/api/gateway";
import type { ExitStatus } from "@unkey/api/metal";
import { type ErrorReason, errorCatalogue, isServiceError, ServiceError } from "@unkey/base";
import type { Acting } from "../adapters/platform.ts";
import type { DeploymentRow } from "../store/rows.ts";
import type { Claim } from "../store/work-store.ts";

/** One deployment in the hands of the replica that works on it. */
export interface Work {
  readonly claim: Claim;
  /** As it was when the step began. */
  readonly deployment: DeploymentRow;
  readonly acting: Acting;
  /** Tells watchers what the step is doing. */
  progress(detail: string): Promise<void>;
}

export interface StepOutcome {
  /** What was done, for people. */
  readonly detail: string;
  /** There was nothing to do. */
  readonly skipped?: boolean;
  /** The step has stored its own end, in one transaction with its effect. */
  readonly ended?: boolean;
}

/**
 * One step of a deployment. `run` may be started again from the beginning by another replica, `undo` may meet any part
 * of `run` done or not; both may be repeated.
 */
export interface Step {
  /** How long `run` may take in one attempt. */
  readonly timeoutMs: number;
  run(work: Work, signal: AbortSignal): Promise<StepOutcome>;
  undo(work: Work, signal: AbortSignal): Promise<void>;
}

/** Throw it to give up a deployment whose caller no longer wants it. */
export class GivenUp extends Error {
  constructor() {
    super("the caller gave the deployment up");
    this.name = "GivenUp";
  }
}

/** A build that has ended without its image: asking again finds the same end, whatever its reason is. */
export class BuildFailed extends ServiceError {}

/** An app that could not be brought to serve: what the caller needs to see to correct it. */
export class AppFailed extends ServiceError {
  readonly exit: ExitStatus | undefined;
  readonly lastLines: readonly string[];

  constructor(
    reason: ErrorReason,
    message: string,
    seen: { readonly exit?: ExitStatus | undefined; readonly lastLines: readonly string[]; readonly cause?: unknown },
  ) {
    super(reason, message, "cause" in seen ? { cause: seen.cause } : {});
    this.name = "AppFailed";
    this.exit = seen.exit;
    this.lastLines = seen.lastLines;
  }
}

/** What a deployment says about the error that ended its step. */
export function describeFailure(kind: string, error: unknown): Omit<DeploymentFailure, "$typeName"> {
  if (!isServiceError(error)) {
    return {
      step: kind,
      reason: "INTERNAL",
      message: "something broke inside the gateway",
      nextStep: errorCatalogue.INTERNAL.nextStep,
      lastLines: [],
    };
  }
  const { message, nextStep } = error;
  // A peer of another release may use a reason that this one does not know; its own word is worth more than our guess.
  const reason = error.metadata["peerReason"] ?? error.reason;
  const app = error instanceof AppFailed ? error : undefined;
  return {
    step: kind,
    reason,
    message,
    nextStep,
    lastLines: [...(app?.lastLines ?? [])],
    ...(app?.exit ? { exit: app.exit } : {}),
  };
}
