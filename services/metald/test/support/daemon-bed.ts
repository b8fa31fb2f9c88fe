import { type ChildProcess, spawn } from "node:child_process";
import { once } from "node:events";
import { accessSync, chmodSync, constants } from "node:fs";
import { mkdtemp, readFile, rm, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { delimiter, join } from "node:path";
import { fileURLToPath } from "node:url";
import { MetalService } from "@unkey/api/metal";
import { newId, type TenantId } from "@unkey/base";
import { createLogger, Metrics } from "@unkey/daemon";
import { Authority, ensureIdentity, IdentitySource } from "@unkey/pki";
import { callOptions, listenRpc, mintPrincipal, openRpcChannel } from "@unkey/rpc";
import { FakeAssets, FakeBillaged } from "./fake-peers.ts";
import { imageInParts } from "./image-in-parts.ts";
import { eventually } from "./metal-bed.ts";
import { hostNetworkSkip } from "./skip-reasons.ts";

/** Kept between runs: the kernel is a download. */
const guestDir = fileURLToPath(new URL("../../../../node_modules/.cache/unkey-guest", import.meta.url));
const mainFile = fileURLToPath(new URL("../../src/main.ts", import.meta.url));
const programs = ["qemu-system-x86_64", "mke2fs", "busybox", "apt-get", "dpkg-deb", "setpriv", "prlimit"];

/** Why real guests cannot be run by a real metald here; false when they can. */
export function realGuestSkip(): string | false {
  if (process.arch !== "x64") return `guests are x86-64 and this host is ${process.arch}`;
  const folders = [...(process.env["PATH"] ?? "").split(delimiter), "/usr/sbin", "/sbin"];
  const missing = programs.filter((program) => !folders.some((folder) => isExecutable(join(folder, program))));
  return missing.length > 0 ? `missing on this host: ${missing.join(", ")}` : hostNetworkSkip();
}

function isExecutable(path: string): boolean {
  try {
    accessSync(path, constants.X_OK);
    return true;
  } catch {
    return false;
  }
}

/** A metald as operators run it: through its wiring, over mutual TLS, on the real host; its two peers are played. */
export class DaemonBed {
  readonly assets = new FakeAssets();
  readonly billaged = new FakeBillaged();
  readonly tenantId: TenantId = newId("tenant");
  readonly rootfsAssetId = newId("asset");
  readonly dir: string;
  readonly #stack = new AsyncDisposableStack();
  readonly #authority: Authority;
  readonly #peers: Record<string, string> = {};
  #daemon: ChildProcess | undefined;
  readonly logLines: string[] = [];

  readonly #hypervisor: "qemu" | "memory";

  private constructor(dir: string, hypervisor: "qemu" | "memory") {
    this.dir = dir;
    this.#hypervisor = hypervisor;
    this.#authority = Authority.open(join(dir, "ca"), { commonName: "Test" });
    this.#stack.defer(() => rm(dir, { recursive: true, force: true }));
  }

  static async open(
    t: { after(fn: () => Promise<void>): void },
    hypervisor: "qemu" | "memory" = "qemu",
  ): Promise<DaemonBed> {
    const bed = new DaemonBed(await mkdtemp(join(tmpdir(), "metald-real-")), hypervisor);
    t.after(async () => {
      await bed.stop();
      await bed.#stack.disposeAsync();
    });
    chmodSync(bed.dir, 0o700); // as closed as an operator's home
    await writeFile(join(bed.dir, "provenance-keys.pem"), bed.assets.signer.publicKeyPem);
    if (hypervisor === "qemu") await bed.#makeRootfs();
    for (const [name, routes] of Object.entries({ assetmanagerd: bed.assets.routes, billaged: bed.billaged.routes })) {
      const log = createLogger({ write: (line) => void bed.logLines.push(line) });
      const server = await listenRpc({
        routes,
        identity: bed.#identity(name),
        host: "127.0.0.1",
        port: 0,
        log,
        metrics: new Metrics(),
      });
      bed.#stack.use(server);
      bed.#peers[name] = `127.0.0.1:${server.port}`;
    }
    await bed.start();
    return bed;
  }

  /** What `env` adds to metald's settings. */
  env(): Record<string, string> {
    return {
      UNKEY_METALD_DATA_DIR: join(this.dir, "data"),
      UNKEY_METALD_GUEST_DIR: guestDir,
      UNKEY_METALD_IDENTITY_DIR: join(this.dir, "identities", "metald"),
      UNKEY_METALD_PROVENANCE_KEYS_FILE: join(this.dir, "provenance-keys.pem"),
      UNKEY_METALD_ASSETMANAGERD_ADDRESS: this.#peers["assetmanagerd"] ?? "",
      UNKEY_METALD_BILLAGED_ADDRESS: this.#peers["billaged"] ?? "",
      UNKEY_METALD_ADDRESS_FILE: this.#addressFile,
      UNKEY_METALD_LISTEN_PORT: "0",
      UNKEY_METALD_HEALTH_PORT: "0",
      UNKEY_METALD_HYPERVISOR: this.#hypervisor,
      UNKEY_METALD_BOOT_TIMEOUT: "60s",
      UNKEY_METALD_LOG_LEVEL: "debug",
    };
  }

  async start(): Promise<void> {
    this.#identity("metald");
    await rm(this.#addressFile, { force: true });
    const env = { PATH: process.env["PATH"], ...this.env() };
    this.#daemon = spawn(process.execPath, [mainFile], { env, stdio: ["ignore", "pipe", "inherit"] });
    this.#daemon.stdout?.setEncoding("utf8").on("data", (text: string) => void this.logLines.push(...text.split("\n")));
    await eventually(async () => {
      if (this.#daemon?.exitCode !== null) throw new Error(`metald ended: ${this.logLines.slice(-5).join("\n")}`);
      return readFile(this.#addressFile, "utf8").catch(() => undefined);
    }, "metald listens");
  }

  /** SIGTERM lets it end in order, SIGKILL does not. */
  async stop(signal: "SIGTERM" | "SIGKILL" = "SIGTERM"): Promise<void> {
    const daemon = this.#daemon;
    this.#daemon = undefined;
    if (daemon?.exitCode !== null) return;
    const ended = once(daemon, "exit");
    daemon.kill(signal);
    await ended;
  }

  get #addressFile(): string {
    return join(this.dir, "metald.addresses.json");
  }

  /** Calls metald as `service` does, for the bed's tenant. */
  async call<T>(
    service: "gatewayd" | "operator",
    work: (client: ReturnType<typeof this.client>, options: ReturnType<typeof callOptions>) => Promise<T>,
  ): Promise<T> {
    const identity = this.#identity(service);
    const principal = { tenantId: this.tenantId, subject: "key", roles: [], requestId: newId("req") };
    const principalToken =
      service === "gatewayd" ? mintPrincipal({ identity: identity.current, principal, nowMs: Date.now() }) : undefined;
    await using channel = this.#channel(identity);
    const options = callOptions({ timeoutMs: 150_000, ...(principalToken ? { principalToken } : {}) });
    return await work(channel.client(MetalService), options);
  }

  client() {
    return this.#channel(this.#identity("gatewayd")).client(MetalService);
  }

  #channel(identity: IdentitySource) {
    return openRpcChannel({ peer: "metald", address: { file: this.#addressFile }, identity });
  }

  #identity(service: string): IdentitySource {
    const path = join(this.dir, "identities", service);
    ensureIdentity(this.#authority, path, { id: { trustDomain: "unkey.test", service } });
    return this.#stack.adopt(IdentitySource.open(path), (source) => source[Symbol.dispose]());
  }

  /** The image holds one static binary twice and nothing else, in parts. */
  async #makeRootfs(): Promise<void> {
    const busybox = await readFile(["/usr/bin/busybox", "/bin/busybox"].find(isExecutable) ?? "");
    const { image, parts } = await imageInParts({ busybox, sh: busybox });
    this.assets.contentOf = () => image;
    this.assets.parts = parts;
  }
}
