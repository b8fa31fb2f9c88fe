import type { Writable } from "node:stream";
import { formatBytes, ServiceError } from "@unkey/base";
import type { Logger } from "@unkey/daemon";
import type { ProcessEnd, SandboxedProcess } from "../sandbox/sandbox.ts";
import { type UsageLimits, watchUsage } from "../sandbox/usage-watch.ts";
import { encodeFrame, FrameError, readFrames } from "./frames.ts";
import { type Answer, type AssembledRootfs, type Job, maxAnswerBytes, parseAnswer } from "./messages.ts";
import { misbehaved } from "./misbehaved.ts";

export interface JobOptions {
  /** For the worker's standard input. What they throw is what the job throws. */
  readonly chunks?: AsyncIterable<Uint8Array>;
  /** Where the process writes. */
  readonly directory: string;
  readonly usage: UsageLimits;
  readonly signal: AbortSignal;
  readonly onProgress?: (done: number, total: number) => void;
  readonly log: Logger;
}

/** A job of the longest build says less than this. */
const maxAnswers = 100_000;
/** Reasons that may be the doing of bytes that are not the digest's. */
const mayBeDamage = new Set(["IMAGE_LAYER_INVALID", "IMAGE_DIGEST_MISMATCH"]);

/**
 * Gives a worker its job and its bytes, and answers what it made; returns or throws when the process is gone. The worker may be in
 * the hands of whoever made the image: it is killed at the first thing that a worker does not do. Throws what the worker failed
 * with, what the chunks throw, the signal's reason, or BUILD_MEMORY_EXCEEDED, BUILD_DISK_EXCEEDED, BUILD_WORKER_MISBEHAVED and
 * BUILD_WORKER_FAILED.
 */
export async function runJob(
  worker: SandboxedProcess,
  job: Job,
  options: JobOptions,
): Promise<AssembledRootfs | undefined> {
  const { chunks, directory, usage, signal, onProgress, log } = options;
  await using process = worker;
  let verdict: { readonly error: unknown } | undefined;
  const condemn = (error: unknown): void => {
    verdict ??= { error };
    process.kill();
  };
  const onAbort = (): void => condemn(signal.reason);
  if (signal.aborted) onAbort();
  signal.addEventListener("abort", onAbort, { once: true });
  using _watch = watchUsage(directory, usage, (excess) =>
    condemn(
      new ServiceError(
        "BUILD_DISK_EXCEEDED",
        excess === "disk"
          ? "the disk that builds share is almost full"
          : `the build took more than ${formatBytes(usage.bytes)} of disk`,
      ),
    ),
  );
  try {
    process.control.write(encodeFrame(job));
    const answered = lastAnswer(process, onProgress)
      .catch((error: unknown) => {
        // Another error is the end of the pipe, which the process's own end explains.
        if (error instanceof FrameError) condemn(misbehaved("has sent what no worker sends", error));
        return undefined;
      })
      .finally(process.kill); // it has said all that it may say, and written what it says
    const fed = feed(chunks ?? nothing(), process.input, answered).catch(condemn);
    const [answer, isFed] = await Promise.all([answered, fed]);
    const end = await process.ended;
    if (verdict !== undefined) throw verdict.error;
    if (answer === undefined) throw endedEarly(end);
    if (answer.kind === "failed") throw answer.error;
    if (isFed !== true) throw misbehaved("was done before it had its bytes");
    if ((job.kind === "assemble") !== (answer.rootfs !== undefined)) throw misbehaved("has answered another job");
    return answer.rootfs;
  } catch (error) {
    const words = process.words().trim();
    if (words !== "") log.warn("a build's worker has failed", { job: job.kind, words, error });
    throw error;
  } finally {
    signal.removeEventListener("abort", onAbort);
  }
}

/** The answer that ends the job; undefined when the worker ends before it. */
async function lastAnswer(
  { control }: SandboxedProcess,
  onProgress: JobOptions["onProgress"],
): Promise<Exclude<Answer, { kind: "progress" }> | undefined> {
  let answers = 0;
  for await (const frame of readFrames(control, maxAnswerBytes)) {
    const answer = parseAnswer(frame);
    if (answer.kind !== "progress") return answer;
    if (++answers > maxAnswers) throw new FrameError(`there are more than ${maxAnswers} answers`);
    onProgress?.(answer.done, answer.total);
  }
  return undefined;
}

/**
 * Passes the chunks on at the speed at which the worker reads. True when it took them all. When it ends before, and says that the
 * bytes are at fault, they are read to their end nevertheless: what is not its digest throws that, which is the better reason.
 */
async function feed(
  chunks: AsyncIterable<Uint8Array>,
  input: Writable,
  answered: Promise<Answer | undefined>,
): Promise<boolean> {
  let isOpen = true;
  const closed = new Promise<void>((resolve) => {
    input.once("close", () => {
      isOpen = false;
      resolve();
    });
  });
  for await (const chunk of chunks) {
    if (isOpen) {
      if (!input.write(chunk)) await Promise.race([closed, new Promise((resolve) => input.once("drain", resolve))]);
      continue;
    }
    const answer = await answered;
    if (answer?.kind !== "failed" || !mayBeDamage.has(answer.error.reason)) return false;
  }
  if (!isOpen) return false;
  input.end();
  return true;
}

async function* nothing(): AsyncGenerator<Uint8Array> {}

function endedEarly({ code, signal, outOfMemory }: ProcessEnd): ServiceError {
  // V8 aborts when its heap is full, which may be before the cgroup is.
  if (outOfMemory || signal === "SIGABRT") {
    return new ServiceError("BUILD_MEMORY_EXCEEDED", "the image needs more memory than a build may use");
  }
  if (signal === "SIGXFSZ") {
    return new ServiceError("BUILD_DISK_EXCEEDED", "a file of the build grew over its limit");
  }
  return new ServiceError("BUILD_WORKER_FAILED", `the process that read the image ended early (${signal ?? code})`);
}
