import { type ChildProcess, execFileSync, spawn } from "node:child_process";
import { existsSync, mkdirSync, mkdtempSync, rmSync, writeFileSync } from "node:fs";
import { connect, createServer } from "node:net";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { setTimeout as sleep } from "node:timers/promises";
import { systemClock } from "@unkey/base";
import { Secret } from "@unkey/daemon";
import { S3Client, type S3Settings } from "../src/adapters/s3/s3-client.ts";

const storageServers = ["account", "container", "object"] as const;
const programs = [...storageServers, "proxy"].map((name) => `/usr/bin/swift-${name}-server`);

/** Why no S3 service can be started here; false when it can: for the `skip` of a test. */
export const needsSwift: false | string = (() => {
  const missing = programs.filter((program) => !existsSync(program));
  return missing.length > 0 && `missing on this host: ${missing.join(", ")}`;
})();

export interface S3Server extends AsyncDisposable {
  /** Of a bucket that is empty. */
  readonly settings: S3Settings;
}

/** Starts OpenStack Swift with its S3 API on loopback, one copy of everything, in a folder of its own. */
export async function startSwift(): Promise<S3Server> {
  await using stack = new AsyncDisposableStack();
  const directory = mkdtempSync(join(tmpdir(), "swift-"));
  stack.defer(() => rmSync(directory, { recursive: true, force: true }));
  mkdirSync(join(directory, "devices/disk"), { recursive: true });
  write(directory, "swift.conf", {
    "swift-hash": { swift_hash_path_prefix: "test", swift_hash_path_suffix: "test" },
    "storage-policy:0": { name: "only", default: "yes" },
  });
  const ports = await freePorts(storageServers.length + 1);
  const listening = (port: number) => ({
    bind_ip: "127.0.0.1",
    bind_port: port,
    swift_dir: directory,
    user: process.getuid?.() === 0 ? "root" : "",
    workers: 0,
    log_address: "/dev/null",
  });
  for (const [index, name] of storageServers.entries()) {
    const port = ports[index] ?? 0;
    const builder = join(directory, `${name}.builder`);
    for (const words of [["create", "4", "1", "0"], ["add", `r1z1-127.0.0.1:${port}/disk`, "1"], ["rebalance"]]) {
      execFileSync("/usr/bin/swift-ring-builder", [builder, ...words], { stdio: "ignore" });
    }
    write(directory, `${name}.conf`, {
      DEFAULT: { ...listening(port), devices: join(directory, "devices"), mount_check: "false" },
      "pipeline:main": { pipeline: `${name}-server` },
      [`app:${name}-server`]: { use: `egg:swift#${name}` },
    });
  }
  const proxyPort = ports.at(-1) ?? 0;
  write(directory, "proxy.conf", {
    DEFAULT: listening(proxyPort),
    "pipeline:main": { pipeline: "catch_errors cache s3api tempauth slo proxy-server" },
    "app:proxy-server": { use: "egg:swift#proxy", account_autocreate: "true" },
    "filter:catch_errors": { use: "egg:swift#catch_errors" },
    // Asked for, not needed: without a memcached behind it the proxy looks everything up.
    "filter:cache": { use: "egg:swift#memcache", memcache_servers: "127.0.0.1:9" },
    "filter:s3api": { use: "egg:swift#s3api", location: "us-east-1" },
    "filter:tempauth": { use: "egg:swift#tempauth", user_test_tester: "testing .admin" },
    "filter:slo": { use: "egg:swift#slo" },
  });
  for (const name of [...storageServers, "proxy"]) {
    const child = spawn(`/usr/bin/swift-${name}-server`, [join(directory, `${name}.conf`)], {
      stdio: "ignore",
      env: { ...process.env, SWIFT_DIR: directory },
    });
    stack.defer(() => ended(child));
  }
  await Promise.all(ports.map(accepting));
  const settings = {
    endpoint: `http://127.0.0.1:${proxyPort}`,
    region: "us-east-1",
    bucket: "assets",
    accessKeyId: "test:tester",
    secretAccessKey: new Secret("testing"),
    caFile: undefined,
  };
  await using client = new S3Client(settings, systemClock);
  await client.put("", new Uint8Array(), AbortSignal.timeout(30_000)); // PUT of the bucket itself makes it
  const owned = stack.move();
  return { settings, [Symbol.asyncDispose]: () => owned.disposeAsync() };
}

function write(
  directory: string,
  file: string,
  sections: Readonly<Record<string, Readonly<Record<string, unknown>>>>,
): void {
  const lines = Object.entries(sections).flatMap(([section, settings]) => [
    `[${section}]`,
    ...Object.entries(settings).flatMap(([name, value]) => (value === "" ? [] : [`${name} = ${String(value)}`])),
  ]);
  writeFileSync(join(directory, file), `${lines.join("\n")}\n`);
}

/** Ports that nobody listens on now: these servers cannot be asked which port they were given. */
async function freePorts(count: number): Promise<number[]> {
  const servers = Array.from({ length: count }, () => createServer().listen(0, "127.0.0.1"));
  const ports = await Promise.all(
    servers.map(async (server) => {
      if (!server.listening) await new Promise((resolve) => server.once("listening", resolve));
      const address = server.address();
      return typeof address === "object" && address !== null ? address.port : 0;
    }),
  );
  await Promise.all(servers.map((server) => new Promise((resolve) => server.close(resolve))));
  return ports;
}

async function accepting(port: number): Promise<void> {
  for (let attempt = 0; attempt < 600; attempt++) {
    const open = await new Promise<boolean>((resolve) => {
      const socket = connect(port, "127.0.0.1");
      socket.once("connect", () => resolve(true)).once("error", () => resolve(false));
      socket.once("connect", () => socket.destroy());
    });
    if (open) return;
    await sleep(50);
  }
  throw new Error(`nobody listens on port ${port}`);
}

function ended(child: ChildProcess): Promise<void> {
  return new Promise((resolve) => {
    if (child.exitCode !== null || child.signalCode !== null) {
      resolve();
      return;
    }
    child.once("exit", () => resolve());
    child.kill("SIGKILL");
  });
}
