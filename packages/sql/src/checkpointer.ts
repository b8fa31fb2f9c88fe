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
  #worker: Worker | undefined;
  #rest: NodeJS.Timeout | undefined;
  #ending: Promise<void> = Promise.resolve();

  constructor(path: string) {
    this.#path = path;
  }

  /** One checkpoint, of what was in the log when it began. Only one at a time. */
  async run(): Promise<void> {
    clearTimeout(this.#rest);
    const worker = (this.#worker ??= this.#start());
    try {
      worker.postMessage("checkpoint");
      const [{ failure }] = (await once(worker, "message")) as [{ failure: string | undefined }];
      if (failure !== undefined) throw new Error(failure);
    } finally {
      this.#rest = setTimeout(() => this.#end(), restMs).unref();
    }
  }

  #start(): Worker {
    const worker = new Worker(new URL("./checkpoint-worker.ts", import.meta.url), {
      workerData: this.#path,
      execArgv: [], // what the process preloads is not for this thread
      resourceLimits: { maxOldGenerationSizeMb: 32, maxYoungGenerationSizeMb: 4 },
    });
    worker.on("error", () => {
      if (this.#worker === worker) this.#worker = undefined; // whoever waits is told; the next one gets a new thread
    });
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
