import { once } from "node:events";
import { Worker } from "node:worker_threads";

/** The thread takes some 20 MiB: it ends when nothing has been asked of it for so long. */
const restMs = 10_000;

/**
 * Copies the log of a database into its file, and starts it afresh, from a thread with connections of its own: copying and its
 * syncs take from milliseconds to seconds. The thread is started when it is needed. One call at a time.
 */
export class Checkpointer implements AsyncDisposable {
  readonly #path: string;
  readonly #program: URL;
  #worker: Worker | undefined;
  #rest: NodeJS.Timeout | undefined;
  #ending: Promise<void> = Promise.resolve();

  /** `program` is what the thread runs. */
  constructor(path: string, program = new URL("./checkpoint-worker.ts", import.meta.url)) {
    this.#path = path;
    this.#program = program;
  }

  /** Copies what is in the log now, beside its writers. Until one of the next two calls the log does not start afresh. */
  copy(): Promise<void> {
    return this.#order("copy");
  }

  /** Lets the log be. Were all of it copied, the next commit would start it afresh, and wait for a sync. */
  release(): Promise<void> {
    return this.#order("release");
  }

  /** Copies the rest and starts the log afresh, unless another process reads it. Nobody may write meanwhile. */
  restart(): Promise<void> {
    return this.#order("restart");
  }

  async #order(order: "copy" | "release" | "restart"): Promise<void> {
    clearTimeout(this.#rest);
    const worker = (this.#worker ??= this.#start());
    const ended = new AbortController();
    try {
      const answer = once(worker, "message", { signal: ended.signal }) as Promise<[{ failure: string | undefined }]>;
      // A thread may end without an error: by `process.exit`, or when its memory is taken away.
      const exit = once(worker, "exit", { signal: ended.signal }).then(() => {
        throw new Error("the thread that copies the log has ended");
      });
      worker.postMessage(order);
      const [{ failure }] = await Promise.race([answer, exit]);
      if (failure !== undefined) throw new Error(failure);
    } finally {
      ended.abort();
      this.#rest = setTimeout(() => this.#end(), restMs).unref();
    }
  }

  #start(): Worker {
    const worker = new Worker(this.#program, {
      workerData: this.#path,
      execArgv: [], // what the process preloads is not for this thread
      resourceLimits: { maxOldGenerationSizeMb: 32, maxYoungGenerationSizeMb: 4 },
    });
    const forget = () => {
      if (this.#worker === worker) this.#worker = undefined; // whoever waits is told; the next one gets a new thread
    };
    worker.on("error", forget);
    worker.on("exit", forget);
    worker.unref();
    return worker;
  }

  #end(): void {
    const worker = this.#worker;
    if (worker === undefined) return;
    this.#worker = undefined;
    worker.ref();
    worker.postMessage("close");
    this.#ending = once(worker, "exit").then(() => undefined);
    this.#ending.catch(() => undefined); // its error is the same end
  }

  async [Symbol.asyncDispose](): Promise<void> {
    clearTimeout(this.#rest);
    this.#end();
    await this.#ending.catch(() => undefined);
  }
}
