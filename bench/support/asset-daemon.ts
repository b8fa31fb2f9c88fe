import { type ChildProcess, spawn } from "node:child_process";
import { once } from "node:events";
import { existsSync, mkdirSync, mkdtempSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import type { Client } from "@connectrpc/connect";
import { AssetService } from "@unkey/api/asset";
import { frugalMalloc, frugalNode } from "@unkey/cli/dev";
import { Authority, ensureIdentity, IdentitySource } from "@unkey/pki";
import { openRpcChannel } from "@unkey/rpc";

/** assetmanagerd as a process of its own, spoken to as its callers do. */
export interface AssetDaemon extends AsyncDisposable {
  readonly dataDir: string;
  readonly stagingRoot: string;
  /** Starts it, or starts it again; resolves when it serves. */
  start(): Promise<void>;
  stop(): Promise<void>;
  /** What a client of that service needs. */
  access(service: string): Access;
  client(service: string): Client<typeof AssetService>;
  /** The longest pause of its event loop since the last call, in ms. */
  longestPauseMs(): Promise<number>;
}

export interface Access {
  readonly identityDir: string;
  readonly addressFile: string;
}

export function connect(
  { identityDir, addressFile }: Access,
  stack: AsyncDisposableStack,
): Client<typeof AssetService> {
  const identity = stack.use(IdentitySource.open(identityDir));
  const address = { file: addressFile };
  return stack
    .use(openRpcChannel({ peer: "assetmanagerd", address, identity, defaultTimeoutMs: 120_000 }))
    .client(AssetService);
}

export function openAssetDaemon(settings: Readonly<Record<string, string>> = {}): AssetDaemon {
  const stack = new AsyncDisposableStack();
  const dir = mkdtempSync(join(tmpdir(), "bench-assets-"));
  stack.defer(() => rmSync(dir, { recursive: true, force: true }));
  const dataDir = join(dir, "data");
  const stagingRoot = join(dir, "vms");
  const addressFile = join(dir, "address.json");
  mkdirSync(stagingRoot);
  const authority = Authority.open(join(dir, "ca"), { commonName: "Bench" });
  const access = (service: string): Access => {
    const identityDir = join(dir, `identity-${service}`);
    ensureIdentity(authority, identityDir, { id: { trustDomain: "unkey.bench", service } });
    return { identityDir, addressFile };
  };
  const own = Object.entries({
    DATA_DIR: dataDir,
    STAGING_ROOTS: stagingRoot,
    IDENTITY_DIR: access("assetmanagerd").identityDir,
    LISTEN_PORT: "0",
    HEALTH_PORT: "0",
    ADDRESS_FILE: addressFile,
    GC_INTERVAL: "7d",
    ...settings,
  }).map(([name, value]) => [`UNKEY_ASSETMANAGERD_${name}`, value] as const);
  let child: ChildProcess | undefined;
  const daemon: AssetDaemon = {
    dataDir,
    stagingRoot,
    async start() {
      rmSync(addressFile, { force: true });
      const preload = new URL("./loop-delay.ts", import.meta.url).href;
      const main = join(import.meta.dirname, "../../services/assetmanagerd/src/main.ts");
      const options = (process.env["BENCH_DAEMON_OPTIONS"] ?? "").split(" ").filter((option) => option !== "");
      child = spawn(process.execPath, [...frugalNode("assetmanagerd"), ...options, "--import", preload, main], {
        env: { PATH: process.env["PATH"], ...frugalMalloc, ...Object.fromEntries(own) },
        stdio: ["ignore", "ignore", 2, "ipc"],
      });
      while (!existsSync(addressFile)) {
        if (child.exitCode !== null) throw new Error("assetmanagerd did not start");
        await new Promise((resolve) => setTimeout(resolve, 20));
      }
    },
    async stop() {
      if (child === undefined || child.exitCode !== null) return;
      const ended = once(child, "exit");
      child.kill("SIGTERM");
      await ended;
    },
    access,
    client: (service) => connect(access(service), stack),
    async longestPauseMs() {
      if (child === undefined) throw new Error("assetmanagerd does not run");
      const answer = once(child, "message");
      child.send("read");
      return Number((await answer)[0]);
    },
    [Symbol.asyncDispose]: async () => {
      await daemon.stop();
      await stack.disposeAsync();
    },
  };
  return daemon;
}
