import { type ExecFileException, execFile } from "node:child_process";
import { mkdir, mkdtemp, readFile, rm, symlink } from "node:fs/promises";
import { request } from "node:https";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { assembleHello } from "@unkey/cli/demo";

const repository = join(import.meta.dirname, "../../..");

export interface Run {
  readonly status: number;
  readonly stdout: string;
  readonly stderr: string;
}

export interface Answer {
  readonly status: number;
  readonly body: Buffer;
}

/** What `unkey dev up` wrote down for clients. */
interface Profile {
  readonly url: string;
  readonly apiKey: string;
  readonly caFile: string;
}

interface DaemonStatus {
  readonly name: string;
  readonly state: string;
  readonly pid?: number;
  readonly restarts: number;
}

/** The six daemons as processes of their own under `unkey dev`, with real guests. Disposal takes down VMs and daemons. */
export class DevPlatform implements AsyncDisposable {
  readonly home: string;
  readonly #scratch: string;

  private constructor(scratch: string) {
    this.#scratch = scratch;
    this.home = join(scratch, "home");
  }

  static async start(): Promise<DevPlatform> {
    const platform = new DevPlatform(await mkdtemp(join(tmpdir(), "unkey-e2e-")));
    // The kernel is a download: every platform of this checkout shares one.
    const guests = join(repository, "node_modules/.cache/unkey-guest");
    await mkdir(guests, { recursive: true });
    await mkdir(platform.home, { mode: 0o711 });
    await symlink(guests, join(platform.home, "guest"));
    try {
      await platform.unkey(["dev", "up", "--ports", "auto"]);
    } catch (error) {
      await platform[Symbol.asyncDispose]();
      throw error;
    }
    return platform;
  }

  /** Runs the command line; throws with what it said when the status is not 0. */
  async unkey(words: readonly string[]): Promise<Run> {
    const run = await this.tryUnkey(words);
    if (run.status !== 0)
      throw new Error(`unkey ${words.join(" ")} ended with ${run.status}\n${run.stdout}${run.stderr}`);
    return run;
  }

  tryUnkey(words: readonly string[]): Promise<Run> {
    const main = join(repository, "apps/cli/src/main.ts");
    // This platform and no other that the environment may name.
    const others = { UNKEY_API_URL: undefined, UNKEY_API_KEY: undefined, UNKEY_CA_FILE: undefined };
    const env = { ...process.env, ...others, UNKEY_HOME: this.home };
    const options = { env, maxBuffer: 64 * 2 ** 20, timeout: 240_000 };
    return new Promise((resolve) => {
      execFile(process.execPath, [main, ...words], options, (error: ExecFileException | null, stdout, stderr) => {
        resolve({ status: error === null ? 0 : typeof error.code === "number" ? error.code : 1, stdout, stderr });
      });
    });
  }

  /** What a command prints with --json. */
  async json<T>(words: readonly string[]): Promise<T> {
    return JSON.parse((await this.unkey([...words, "--json"])).stdout) as T;
  }

  async daemons(): Promise<readonly DaemonStatus[]> {
    const { stdout } = await this.tryUnkey(["dev", "status", "--json"]);
    return (JSON.parse(stdout) as { daemons: DaemonStatus[] }).daemons;
  }

  async pidOf(daemon: string): Promise<number> {
    const pid = (await this.daemons()).find(({ name }) => name === daemon)?.pid;
    if (pid === undefined) throw new Error(`${daemon} does not run`);
    return pid;
  }

  /** SIGKILLs a daemon and waits until the supervisor has a new one ready. */
  async killDaemon(daemon: string): Promise<void> {
    const pid = await this.pidOf(daemon);
    process.kill(pid, "SIGKILL");
    await until(`${daemon} is ready again`, async () =>
      (await this.daemons()).some((status) => status.name === daemon && status.state === "ready" && status.pid !== pid),
    );
  }

  /** Assembles the hello image as an OCI layout; yields its folder. */
  async helloLayout(): Promise<string> {
    const layout = join(this.#scratch, `hello-${Date.now()}`);
    await assembleHello(layout);
    return layout;
  }

  /** GET of an app's page through the ingress, certified by the platform's authority. */
  async get(url: string, path = "/"): Promise<Answer> {
    return this.#call(new URL(path, url), "GET", {});
  }

  /** A call of the REST API with the platform's key. */
  async api(method: string, path: string, body?: unknown): Promise<Answer> {
    const { url, apiKey } = await this.#profile();
    const headers = { authorization: `Bearer ${apiKey}`, "content-type": "application/json" };
    return this.#call(new URL(path, url), method, headers, body === undefined ? "" : JSON.stringify(body));
  }

  async #profile(): Promise<Profile> {
    return JSON.parse(await readFile(join(this.home, "cli.json"), "utf8")) as Profile;
  }

  async #call(url: URL, method: string, headers: Record<string, string>, body = ""): Promise<Answer> {
    const { hostname, port } = url;
    const ca = await readFile((await this.#profile()).caFile);
    return new Promise((resolve, reject) => {
      const call = request(
        {
          host: "127.0.0.1",
          port,
          method,
          path: url.pathname + url.search,
          ca,
          servername: hostname,
          headers: {
            ...headers,
            host: `${hostname}:${port}`,
            ...(body === "" ? {} : { "content-length": Buffer.byteLength(body) }),
          },
          agent: false,
        },
        (response) => {
          const chunks: Buffer[] = [];
          response.on("data", (chunk: Buffer) => chunks.push(chunk));
          response.on("error", reject);
          response.on("end", () => resolve({ status: response.statusCode ?? 0, body: Buffer.concat(chunks) }));
        },
      );
      call.on("error", reject);
      call.end(body);
    });
  }

  async log(daemon: string): Promise<string> {
    return readFile(join(this.home, "logs", `${daemon}.log`), "utf8");
  }

  /** What metald calls this platform in the names of its netns, nftables tables and cgroups. */
  async instance(): Promise<string> {
    const instance = /"instance":"([^"]+)"/.exec(await this.log("metald"))?.[1];
    if (instance === undefined) throw new Error("metald's log does not name its instance");
    return instance;
  }

  async [Symbol.asyncDispose](): Promise<void> {
    const down = await this.tryUnkey(["dev", "down", "--delete-vms"]);
    if (down.status !== 0) throw new Error(`the platform could not be taken down: ${down.stderr}`);
    // The supervisor, which has nothing left to supervise, may still be writing its compile cache as it exits.
    await rm(this.#scratch, { recursive: true, force: true, maxRetries: 10, retryDelay: 100 });
  }
}

/** Asks every 100 ms until `holds`; throws after a minute. */
export async function until(what: string, holds: () => Promise<boolean>): Promise<void> {
  const deadlineMs = performance.now() + 60_000;
  while (!(await holds())) {
    if (performance.now() > deadlineMs) throw new Error(`waited a minute in vain until ${what}`);
    await new Promise((resolve) => setTimeout(resolve, 100));
  }
}
