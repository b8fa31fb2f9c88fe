import { type ChildProcess, fork } from "node:child_process";
import { randomBytes } from "node:crypto";
import { once } from "node:events";
import { join } from "node:path";
import { fileURLToPath } from "node:url";
import { backoffDelayMs, systemClock } from "@unkey/base";
import { type ChdbAnswer, type ChdbStart, chdbUser } from "./chdb-protocol.ts";
import { type ClickHouse, ClickHouseError, type ClickHouseParams, type ClickHouseValue } from "./clickhouse.ts";
import { connectClickHouse } from "./http-clickhouse.ts";

export interface ChdbLog {
  info(message: string, fields?: Record<string, unknown>): void;
  warn(message: string, fields?: Record<string, unknown>): void;
}

export interface ChdbOptions {
  /** Its folder, used by one process at a time; made when missing. */
  readonly dataDir: string;
  readonly log: ChdbLog;
}

const startTimeoutMs = 60_000;
const stopTimeoutMs = 8_000;
const restartBackoff = { baseMs: 200, maxMs: 10_000 };
/** A child that lived this long was healthy: its death starts the backoff over. */
const healthyMs = 30_000;
/** Calls made while the child restarts wait at most this long. */
const waitForRestartMs = 5_000;

interface Running {
  readonly process: ChildProcess;
  readonly client: ClickHouse;
}

/**
 * The ClickHouse engine in a child process (a crash of the engine must not be ours, and it cannot leave a worker thread
 * alive), behind a loopback HTTP interface whose password is random for each start. The child is started again when it
 * dies, with backoff; calls meanwhile wait briefly, then fail as unavailable. Rejects when the first start fails.
 */
export async function startChdb(options: ChdbOptions): Promise<ChdbServer> {
  const server = new ChdbServer(options);
  await server.start();
  return server;
}

export class ChdbServer implements ClickHouse {
  readonly #options: ChdbOptions;
  readonly #stop = new AbortController();
  #running: Promise<Running> = Promise.reject(new Error("not started"));
  #supervision: Promise<void> = Promise.resolve();

  constructor(options: ChdbOptions) {
    this.#options = options;
    this.#running.catch(() => undefined);
  }

  async start(): Promise<void> {
    this.#running = this.#launch();
    const first = await this.#running;
    this.#supervision = this.#supervise(first);
  }

  /** The child's process id, for those who measure or kill it. */
  async pid(): Promise<number> {
    return (await this.#running).process.pid ?? 0;
  }

  async insert(
    table: string,
    rows: readonly Readonly<Record<string, ClickHouseValue>>[],
    options: { dedupToken: string },
  ): Promise<void> {
    await (await this.#client()).insert(table, rows, options);
  }

  async query<R extends object>(sql: string, params?: ClickHouseParams): Promise<R[]> {
    return (await this.#client()).query<R>(sql, params);
  }

  async exec(sql: string, params?: ClickHouseParams): Promise<void> {
    await (await this.#client()).exec(sql, params);
  }

  async ping(): Promise<void> {
    await (await this.#client()).ping();
  }

  async [Symbol.asyncDispose](): Promise<void> {
    if (this.#stop.signal.aborted) return this.#supervision;
    this.#stop.abort();
    await this.#supervision;
  }

  async #client(): Promise<ClickHouse> {
    const late = AbortSignal.timeout(waitForRestartMs);
    const timeout = new Promise<never>((_, reject) => {
      late.addEventListener("abort", () => reject(new ClickHouseError("unavailable", "the ClickHouse child is down")));
    });
    timeout.catch(() => undefined);
    const running = await Promise.race([this.#running, timeout]);
    return running.client;
  }

  async #supervise(first: Running): Promise<void> {
    let running = first;
    for (let attempt = 0; ; ) {
      const startedAtMs = Date.now();
      const died = exited(running.process);
      const stopping = await Promise.race([died.then(() => false), aborted(this.#stop.signal).then(() => true)]);
      if (stopping) {
        await stop(running);
        return;
      }
      this.#options.log.warn("the ClickHouse child died; it is started again", {
        exitCode: running.process.exitCode,
        signal: running.process.signalCode,
      });
      await running.client[Symbol.asyncDispose]();
      if (Date.now() - startedAtMs > healthyMs) attempt = 0;
      const next = await this.#relaunch(attempt);
      if (next === undefined) return;
      running = next.running;
      attempt = next.attempt;
    }
  }

  /** Starts a child until one comes up, or yields undefined when it shall stop. Callers wait for the outcome meanwhile. */
  async #relaunch(fromAttempt: number): Promise<{ running: Running; attempt: number } | undefined> {
    const up = Promise.withResolvers<Running>();
    up.promise.catch(() => undefined);
    this.#running = up.promise;
    for (let attempt = fromAttempt; !this.#stop.signal.aborted; attempt++) {
      await systemClock.sleep(backoffDelayMs(restartBackoff, attempt), this.#stop.signal).catch(() => undefined);
      if (this.#stop.signal.aborted) break;
      try {
        const running = await this.#launch();
        up.resolve(running);
        return { running, attempt: attempt + 1 };
      } catch (error) {
        this.#options.log.warn("the ClickHouse child did not start", { error, attempt });
      }
    }
    up.reject(new ClickHouseError("unavailable", "the ClickHouse child is stopped"));
    return undefined;
  }

  async #launch(): Promise<Running> {
    const password = randomBytes(32).toString("base64url");
    const { dataDir, log } = this.#options;
    const child = fork(fileURLToPath(new URL("./chdb-child.ts", import.meta.url)), {
      execArgv: ["--max-semi-space-size=2", "--max-old-space-size=256", "--disable-warning=ExperimentalWarning"],
      // None of the parent's secrets. With cached code the type stripper is never loaded, which saves 18 MB.
      env: { PATH: process.env["PATH"], TZ: "UTC", NODE_COMPILE_CACHE: join(dataDir, "code-cache") },
      stdio: ["ignore", "ignore", "pipe", "ipc"],
    });
    const stderr: string[] = [];
    child.stderr?.setEncoding("utf8").on("data", (text: string) => {
      if (stderr.length < 32) stderr.push(text.slice(0, 1024));
    });
    try {
      const start: ChdbStart = { kind: "start", dataDir, password };
      child.send(start);
      const answer = await firstAnswer(child);
      if (answer.kind === "failed") throw new Error(answer.message);
      const url = `http://127.0.0.1:${answer.port}`;
      const client = await connectClickHouse({ url, username: chdbUser, password });
      await client.ping();
      log.info("the ClickHouse child is up", { pid: child.pid, port: answer.port });
      return { process: child, client };
    } catch (cause) {
      child.kill("SIGKILL");
      throw new ClickHouseError(
        "unavailable",
        `the ClickHouse child did not start: ${stderr.join("").slice(0, 1024)}`,
        {
          cause,
        },
      );
    }
  }
}

async function firstAnswer(child: ChildProcess): Promise<ChdbAnswer> {
  const settled = new AbortController();
  const { signal } = settled;
  try {
    return await Promise.race([
      once(child, "message", { signal }).then(([answer]) => answer as ChdbAnswer),
      once(child, "exit", { signal }).then(([code, by]) => {
        throw new Error(`it exited with ${String(code ?? by)}`);
      }),
      aborted(AbortSignal.timeout(startTimeoutMs)).then(() => {
        throw new Error(`it did not answer within ${startTimeoutMs} ms`);
      }),
    ]);
  } finally {
    settled.abort();
  }
}

async function stop({ process: child, client }: Running): Promise<void> {
  await client[Symbol.asyncDispose]();
  if (child.connected) child.disconnect(); // what it also sees when we are killed
  const late = setTimeout(() => child.kill("SIGKILL"), stopTimeoutMs);
  await exited(child);
  clearTimeout(late);
}

async function exited(child: ChildProcess): Promise<void> {
  if (child.exitCode === null && child.signalCode === null) await once(child, "exit");
}

function aborted(signal: AbortSignal): Promise<void> {
  return new Promise((resolve) => {
    if (signal.aborted) resolve();
    else signal.addEventListener("abort", () => resolve(), { once: true });
  });
}
