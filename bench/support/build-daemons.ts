import { type ChildProcess, spawn } from "node:child_process";
import { once } from "node:events";
import { existsSync } from "node:fs";
import { mkdtemp, readFile, rm } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import type { Client } from "@connectrpc/connect";
import { type Build, BuilderService, BuildState } from "@unkey/api/builder";
import { newId } from "@unkey/base";
import { frugalMalloc, frugalNode, openHome, unkeyPlatform } from "@unkey/cli/dev";
import { IdentitySource } from "@unkey/pki";
import { callOptions, mintPrincipal, openRpcChannel } from "@unkey/rpc";

const startTimeoutMs = 60_000;

/** assetmanagerd and builderd as processes of their own, set up as `unkey dev up` does and called as gatewayd calls them. */
export class BuildDaemons implements AsyncDisposable {
  readonly builderPid: number;
  readonly #client: Client<typeof BuilderService>;
  readonly #identity: IdentitySource;
  readonly #owned: AsyncDisposableStack;
  readonly #tenantId = newId("tenant");

  private constructor(parts: {
    builderPid: number;
    client: Client<typeof BuilderService>;
    identity: IdentitySource;
    owned: AsyncDisposableStack;
  }) {
    this.builderPid = parts.builderPid;
    this.#client = parts.client;
    this.#identity = parts.identity;
    this.#owned = parts.owned;
  }

  static async start(): Promise<BuildDaemons> {
    await using stack = new AsyncDisposableStack();
    const root = await mkdtemp(join(tmpdir(), "unkey-bench-"));
    stack.defer(() => rm(root, { recursive: true, force: true, maxRetries: 10, retryDelay: 100 }));
    const home = openHome(root);
    const platform = unkeyPlatform(home, process.env);
    for (const task of platform.tasks) {
      if (task.name !== "guest") await task.run(() => undefined, new AbortController().signal);
    }
    const pids = new Map<string, number>();
    for (const name of ["assetmanagerd", "builderd"]) {
      const spec = platform.daemons.find((daemon) => daemon.name === name);
      if (spec === undefined) throw new Error(`the platform has no ${name}`);
      const ports = Object.fromEntries(Object.keys(spec.ports).map((endpoint) => [endpoint, 0]));
      const settings = spec.environment({ home, ports });
      const options = (process.env["BENCH_DAEMON_OPTIONS"] ?? "").split(" ").filter((option) => option !== "");
      const child = spawn(process.execPath, [...frugalNode(name), ...options, spec.main], {
        env: {
          PATH: process.env["PATH"],
          NODE_COMPILE_CACHE: home.compileCacheDir,
          ...frugalMalloc,
          ...settings,
        },
        stdio: ["ignore", "ignore", "inherit"],
      });
      stack.defer(() => stop(child));
      await ready(child, home.addressFile(name));
      pids.set(name, child.pid ?? 0);
    }
    const identity = stack.use(IdentitySource.open(home.identityDir("gatewayd")));
    const address = { file: home.addressFile("builderd") };
    const channel = stack.use(openRpcChannel({ peer: "builderd", address, identity }));
    const client = channel.client(BuilderService);
    return new BuildDaemons({ builderPid: pids.get("builderd") ?? 0, client, identity, owned: stack.move() });
  }

  /** Builds an image for the one tenant there is; from the request to the end of the build, as a watcher sees it. */
  async build(reference: string): Promise<{ seconds: number; build: Build }> {
    const startMs = performance.now();
    const request = {
      tenantId: this.#tenantId,
      idempotencyKey: newId("req"),
      image: { source: { case: "reference" as const, value: reference } },
      argvOverride: ["/bin/true"],
    };
    let build = await this.#client.buildImage(request, this.#asTenant());
    if (!isOver(build)) {
      const watching = { tenantId: this.#tenantId, buildId: build.buildId };
      for await (const now of this.#client.watchBuild(watching, this.#asTenant())) build = now;
    }
    const seconds = (performance.now() - startMs) / 1000;
    if (build.state !== BuildState.COMPLETED) {
      throw new Error(`${reference} was not built: ${build.failure?.reason} ${build.failure?.message}`);
    }
    return { seconds, build };
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.#owned.disposeAsync();
  }

  #asTenant() {
    const requestId = newId("req");
    const principal = { tenantId: this.#tenantId, subject: "bench", roles: [], requestId };
    return callOptions({
      requestId,
      principalToken: mintPrincipal({ identity: this.#identity.current, principal, nowMs: Date.now() }),
    });
  }
}

function isOver({ state }: Build): boolean {
  return state === BuildState.COMPLETED || state === BuildState.FAILED || state === BuildState.CANCELLED;
}

async function ready(child: ChildProcess, addressFile: string): Promise<void> {
  const deadlineMs = performance.now() + startTimeoutMs;
  while (!existsSync(addressFile) || (await readFile(addressFile, "utf8")) === "") {
    if (child.exitCode !== null || performance.now() > deadlineMs) throw new Error("a daemon did not start");
    await new Promise((resolve) => setTimeout(resolve, 20));
  }
}

async function stop(child: ChildProcess): Promise<void> {
  if (child.exitCode !== null || child.signalCode !== null) return;
  const ended = once(child, "exit");
  child.kill("SIGTERM");
  await ended;
}
