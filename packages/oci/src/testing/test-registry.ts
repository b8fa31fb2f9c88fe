import { spawn } from "node:child_process";
import { existsSync } from "node:fs";
import { mkdtemp, readFile, rm, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { createInterface } from "node:readline";
import { type Dispatcher, request } from "undici";
import { type Descriptor, parseDocument } from "../documents.ts";
import { blobFile, indexFile } from "../layout/layout-files.ts";

const registryPath = "/usr/bin/docker-registry";

/** Why no registry can be started here; false when it can: for the `skip` of a test. */
export const needsRegistry: false | string = existsSync(registryPath) ? false : "docker-registry is not installed";

/** The login of a registry started with `login: true`. */
export const testLogin = { username: "tester", password: "s3cret" } as const;
// htpasswd line of testLogin: bcrypt is the only hash that the server takes.
const htpasswd = "tester:$2y$05$abcdefghijklmnopqrstuuLK7U1u6pVRmL7L1BBM2aS35PSZnDXlK\n";

export interface TestRegistry extends AsyncDisposable {
  /** `127.0.0.1:<port>`. */
  readonly host: string;
  /** Requests for blobs that it has answered with bytes, as far as its log has been read. */
  blobReads(): number;
  /** Resolves when every request until now is in the log. */
  settled(): Promise<void>;
  /** The file in which it keeps a blob, for a test to damage. */
  blobPath(digest: string): string;
}

export interface TestRegistryOptions {
  readonly login?: boolean;
  /** Files in PEM; without them it speaks plain http. */
  readonly tls?: { readonly certificateFile: string; readonly keyFile: string };
  /** Tokens of this server are taken, signed by a key whose certificate is in the file. */
  readonly tokens?: {
    readonly realm: string;
    readonly service: string;
    readonly issuer: string;
    readonly certificateFile: string;
  };
  /** Directory of its blobs and tags, which stays: two registries may serve the same. Its own, removed at the end, without it. */
  readonly storage?: string;
}

/** Starts Debian's registry server on a free loopback port. */
export async function startTestRegistry(options: TestRegistryOptions = {}): Promise<TestRegistry> {
  const { tls, tokens } = options;
  const directory = await mkdtemp(join(tmpdir(), "registry-"));
  const passwordFile = join(directory, "htpasswd");
  await writeFile(passwordFile, htpasswd);
  const config = {
    version: 0.1,
    log: { level: "info", formatter: "json", accesslog: { disabled: false } },
    storage: { filesystem: { rootdirectory: options.storage ?? join(directory, "data") }, delete: { enabled: true } },
    http: {
      addr: "127.0.0.1:0",
      ...(tls === undefined ? {} : { tls: { certificate: tls.certificateFile, key: tls.keyFile } }),
    },
    ...(options.login === true ? { auth: { htpasswd: { realm: "test", path: passwordFile } } } : {}),
    ...(tokens === undefined
      ? {}
      : {
          auth: {
            token: {
              realm: tokens.realm,
              service: tokens.service,
              issuer: tokens.issuer,
              rootcertbundle: tokens.certificateFile,
            },
          },
        }),
  };
  const configFile = join(directory, "config.yml"); // JSON is YAML
  await writeFile(configFile, JSON.stringify(config));
  const child = spawn(registryPath, ["serve", configFile], { stdio: ["ignore", "pipe", "pipe"] });
  const exited = new Promise<void>((resolve) => child.once("close", () => resolve()));
  let blobReads = 0;
  let marks = 0;
  const marked = new Map<string, () => void>();
  const port = await new Promise<string>((resolve, reject) => {
    child.once("error", reject);
    void exited.then(() => reject(new Error("the registry ended before it listened")));
    for (const output of [child.stdout, child.stderr]) {
      createInterface({ input: output }).on("line", (line) => {
        if (/"GET \/v2\/\S+\/blobs\/\S+ HTTP\/1\.[01]" 200/.test(line.replaceAll("\\", ""))) blobReads++;
        const mark = /GET \/v2\/(mark-\d+)/.exec(line)?.[1] ?? "";
        marked.get(mark)?.();
        const found = /listening on 127\.0\.0\.1:(\d+)/.exec(line);
        if (found?.[1] !== undefined) resolve(found[1]);
      });
    }
  });
  return {
    host: `127.0.0.1:${port}`,
    blobReads: () => blobReads,
    settled: async () => {
      const mark = `mark-${++marks}`;
      const seen = new Promise<void>((resolve) => marked.set(mark, resolve));
      const response = await request(`http://127.0.0.1:${port}/v2/${mark}`);
      await response.body.dump();
      await seen;
      marked.delete(mark);
    },
    blobPath: (digest) => {
      const [algorithm = "", hex = ""] = digest.split(":");
      return join(directory, "data/docker/registry/v2/blobs", algorithm, hex.slice(0, 2), hex, "data");
    },
    async [Symbol.asyncDispose]() {
      child.kill("SIGKILL");
      await exited;
      await rm(directory, { recursive: true, force: true });
    },
  };
}

export interface PushOptions {
  /** OCI layout directory with one image. */
  readonly layout: string;
  /** `127.0.0.1:<port>`. */
  readonly host: string;
  readonly repository: string;
  readonly tag: string;
  readonly login?: { readonly username: string; readonly password: string };
}

/** Pushes a layout's image to a plain http registry, without any other tool. */
export async function pushLayout(options: PushOptions): Promise<Descriptor> {
  const { layout } = options;
  const index = parseDocument(await readFile(join(layout, indexFile)), undefined);
  const [descriptor] = index.kind === "index" ? index.manifests : [];
  if (descriptor === undefined) throw new Error(`${layout} holds no image`);
  const bytes = await readFile(join(layout, blobFile(descriptor.digest)));
  const manifest = parseDocument(bytes, descriptor.mediaType);
  if (manifest.kind !== "manifest") throw new Error(`${layout} holds an index`);
  for (const blob of [manifest.config, ...manifest.layers]) {
    await pushBlob(options, blob.digest, await readFile(join(layout, blobFile(blob.digest))));
  }
  await pushManifest(options, descriptor.mediaType, bytes);
  return descriptor;
}

/** Stores bytes as a blob, under whatever digest the server computes for them. */
export async function pushBlob(
  options: Omit<PushOptions, "layout" | "tag">,
  digest: string,
  bytes: Uint8Array,
): Promise<void> {
  const started = await send(options, "POST", `http://${options.host}/v2/${options.repository}/blobs/uploads/`);
  const location = new URL(String(started.headers["location"]), `http://${options.host}`);
  location.searchParams.set("digest", digest);
  await send(options, "PUT", location.href, bytes, "application/octet-stream");
}

/** Stores a manifest or an index under the tag. */
export async function pushManifest(
  options: Omit<PushOptions, "layout">,
  mediaType: string,
  bytes: Uint8Array,
): Promise<void> {
  const { host, repository, tag } = options;
  await send(options, "PUT", `http://${host}/v2/${repository}/manifests/${tag}`, bytes, mediaType);
}

async function send(
  { login }: Pick<PushOptions, "login">,
  method: "POST" | "PUT",
  url: string,
  body?: Uint8Array,
  contentType?: string,
): Promise<Dispatcher.ResponseData> {
  const headers: Record<string, string> = {};
  if (login !== undefined) {
    headers["authorization"] = `Basic ${Buffer.from(`${login.username}:${login.password}`).toString("base64")}`;
  }
  if (contentType !== undefined) headers["content-type"] = contentType;
  const response = await request(url, { method, headers, ...(body === undefined ? {} : { body }) });
  const text = await response.body.text();
  if (response.statusCode >= 300) throw new Error(`${method} ${url} answered ${response.statusCode}: ${text}`);
  return response;
}
