import { once } from "node:events";
import { Worker } from "node:worker_threads";

/** The thread takes some 20 MiB: it ends when nothing has been asked of it for so long. */
const restMs = 10_000;

/**
 * Copies the log of a database into its file from a thread with a connection of its own: copying and its syncs take from
 * milliseconds to seconds. Writers go on meanwhile. The thread is started when it is needed.
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

  /** One checkpoint, of what was in the log when it began. Only one at a time. */
  async run(): Promise<void> {
    clearTimeout(this.#rest);
    const worker = (this.#worker ??= this.#start());
    const ended = new AbortController();
    try {
      const answer = once(worker, "message", { signal: ended.signal }) as Promise<[{ failure: string | undefined }]>;
      // A thread may end without an error: by `process.exit`, or when its memory is taken away.
      const exit = once(worker, "exit", { signal: ended.signal }).then(() => {
        throw new Error("the thread that copies the log has ended");
      });
      worker.postMessage("checkpoint");
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
