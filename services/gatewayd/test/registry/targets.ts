import { spawn } from "node:child_process";
import { once } from "node:events";
import { existsSync } from "node:fs";
import { mkdtemp, readFile, rm, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { createInterface } from "node:readline";
import { setTimeout as sleep } from "node:timers/promises";
import { type Gateway, type Surroundings, surroundings } from "../harness/platform.ts";
import type { RegistryTarget } from "./client.ts";

const dockerRegistry = "/usr/bin/docker-registry";
export const needsDockerRegistry: string | false = existsSync(dockerRegistry)
  ? false
  : "docker-registry is not installed";

const assetManager = join(import.meta.dirname, "../../../assetmanagerd/src/main.ts");

export interface AssetManager extends AsyncDisposable {
  /** As a setting of gatewayd takes it. */
  readonly address: string;
}

/** The real assetmanagerd as a process of its own. */
export async function startAssetManager(around: Surroundings): Promise<AssetManager> {
  const addressFile = join(around.dir, "assetmanagerd.addresses.json");
  const settings = {
    DATA_DIR: join(around.dir, "assetmanagerd"),
    IDENTITY_DIR: around.identityOf("assetmanagerd"),
    TRUST_DOMAIN: around.trustDomain,
    LISTEN_PORT: "0",
    HEALTH_PORT: "0",
    ADDRESS_FILE: addressFile,
  };
  const env = Object.fromEntries(
    Object.entries(settings).map(([name, value]) => [`UNKEY_ASSETMANAGERD_${name}`, value]),
  );
  const child = spawn(process.execPath, [assetManager], {
    env: { PATH: process.env["PATH"], ...env },
    stdio: ["ignore", "ignore", "pipe"],
  });
  let errors = "";
  child.stderr.on("data", (part: Buffer) => (errors += part.toString("utf8")));
  const ended = once(child, "exit");
  while (!(await readFile(addressFile, "utf8").catch(() => "")).includes(`"pid":${child.pid}`)) {
    if (child.exitCode !== null) throw new Error(`assetmanagerd ended: ${errors}`);
    await sleep(20);
  }
  return {
    address: `file:${addressFile}`,
    [Symbol.asyncDispose]: async () => {
      child.kill("SIGKILL");
      await ended;
    },
  };
}

/** gatewayd over the real assetmanagerd. */
export async function startGatewayTarget(
  more: Readonly<Record<string, string>> = {},
): Promise<RegistryTarget & AsyncDisposable & { readonly gateway: Gateway }> {
  await using stack = new AsyncDisposableStack();
  const around = stack.use(await surroundings());
  const assets = stack.use(await startAssetManager(around));
  const gateway = stack.use(await around.start({ ASSETMANAGERD_ADDRESS: assets.address, ...more }));
  const owned = stack.move();
  return { ...targetOf(gateway), gateway, [Symbol.asyncDispose]: () => owned.disposeAsync() };
}

export function targetOf(gateway: Gateway, key = gateway.key): RegistryTarget {
  const login = Buffer.from(`unkey:${key}`).toString("base64");
  return { name: "gatewayd", origin: gateway.apiOrigin, ca: gateway.ca, authorization: `Basic ${login}` };
}

/** Debian's registry: what the tests of ours are checked against. */
export async function startDockerTarget(): Promise<RegistryTarget & AsyncDisposable> {
  const dir = await mkdtemp(join(tmpdir(), "docker-registry-"));
  const config = {
    version: 0.1,
    storage: { filesystem: { rootdirectory: join(dir, "data") }, delete: { enabled: true } },
    http: { addr: "127.0.0.1:0" },
  };
  await writeFile(join(dir, "config.yml"), JSON.stringify(config)); // JSON is YAML
  const child = spawn(dockerRegistry, ["serve", join(dir, "config.yml")], { stdio: ["ignore", "pipe", "pipe"] });
  const ended = once(child, "exit");
  const port = await new Promise<string>((resolve, reject) => {
    void ended.then(() => reject(new Error("the registry ended before it listened")));
    for (const input of [child.stdout, child.stderr]) {
      createInterface({ input }).on("line", (line) => {
        const found = /listening on 127\.0\.0\.1:(\d+)/.exec(line)?.[1];
        if (found !== undefined) resolve(found);
      });
    }
  });
  return {
    name: "docker-registry",
    origin: `http://127.0.0.1:${port}`,
    [Symbol.asyncDispose]: async () => {
      child.kill("SIGKILL");
      await ended;
      await rm(dir, { recursive: true, force: true });
    },
  };
}
