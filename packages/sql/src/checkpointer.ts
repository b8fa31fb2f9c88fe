import { once } from "node:events";
import { Worker } from "node:worker_threads";

/**
 * Copies the log of a database into its file from a thread with a connection of its own: copying and its syncs take from
 * milliseconds to seconds. Writers go on meanwhile. The thread is started when it is first needed.
 */
export class Checkpointer implements AsyncDisposable {
  readonly #path: string;
  #worker: Worker | undefined;

  constructor(path: string) {
    this.#path = path;
  }

  /** One checkpoint, of what was in the log when it began. Only one at a time. */
  async run(): Promise<void> {
    this.#worker ??= this.#start();
    this.#worker.postMessage("checkpoint");
    const [{ failure }] = (await once(this.#worker, "message")) as [{ failure: string | undefined }];
    if (failure !== undefined) throw new Error(failure);
  }

  #start(): Worker {
    const worker = new Worker(new URL("./checkpoint-worker.ts", import.meta.url), {
      workerData: this.#path,
      execArgv: [], // what the process preloads is not for this thread
      resourceLimits: { maxOldGenerationSizeMb: 32, maxYoungGenerationSizeMb: 4 },
    });
    worker.on("error", () => undefined); // `once` above has it, or the next start does
    worker.once("exit", () => {
      this.#worker = undefined;
    });
    worker.unref();
    return worker;
  }

  async [Symbol.asyncDispose](): Promise<void> {
    const worker = this.#worker;
    if (worker === undefined) return;
    worker.ref();
    const ended = once(worker, "exit");
    worker.postMessage("close");
    await ended;
  }
}
