import assert from "node:assert/strict";
import { mkdtemp, readdir, rm } from "node:fs/promises";
import { createServer, type IncomingMessage, type ServerResponse } from "node:http";
import type { AddressInfo } from "node:net";
import { tmpdir } from "node:os";
import { join } from "node:path";
import type { TestContext } from "node:test";
import { type Clock, type ErrorReason, isServiceError } from "@unkey/base";
import { type Digest, digestOf } from "../digest.ts";
import { ociConfigType, ociLayerType, ociManifestType } from "../documents.ts";
import { resolveImage, resolveManifest } from "../image-source.ts";
import { defaultImageLimits } from "../layer/limits.ts";
import { hostPlatform } from "../platform.ts";
import { parseImageReference } from "../reference.ts";
import { type ImageOptions, RegistryClient, type RegistryClientOptions } from "../registry/registry-client.ts";
import { fetchLayers } from "./fetch-layers.ts";

/* A registry whose every answer a test writes, and one small image that it serves. */

export type Handler = (request: IncomingMessage, response: ServerResponse) => void;

export const layer = Buffer.from("l".repeat(100_000));
export const config = Buffer.from(
  JSON.stringify({
    os: "linux",
    architecture: hostPlatform().architecture,
    config: { Cmd: ["/x"] },
    rootfs: { diff_ids: [digestOf(layer)] },
  }),
);
export const describe = (mediaType: string, bytes: Buffer) => ({
  mediaType,
  digest: digestOf(bytes),
  size: bytes.length,
});
export const image = {
  schemaVersion: 2,
  mediaType: ociManifestType,
  config: describe(ociConfigType, config),
  layers: [describe(ociLayerType, layer)],
};
export const manifest = Buffer.from(JSON.stringify(image));
const blobs = new Map<Digest, Buffer>([
  [digestOf(layer), layer],
  [digestOf(config), config],
]);

/** What a well-behaved registry answers. */
export const serve: Handler = (request, response) => {
  const blob = [...blobs].find(([digest]) => request.url?.endsWith(`/blobs/${digest}`))?.[1];
  if (request.url === "/v2/") response.end("{}");
  else if (request.url?.includes("/manifests/") === true)
    response.setHeader("content-type", ociManifestType).end(manifest);
  else if (blob === undefined) response.writeHead(404).end();
  else response.end(blob);
};

export interface Seen {
  readonly method: string;
  readonly url: string;
  readonly authorization: string | undefined;
  readonly range: string | undefined;
}

export async function listen(
  context: TestContext,
  handler: Handler,
  address = "127.0.0.1",
): Promise<{ host: string; seen: Seen[] }> {
  const seen: Seen[] = [];
  const server = createServer((request, response) => {
    const { method = "", url = "", headers } = request;
    seen.push({ method, url, authorization: headers.authorization, range: headers.range });
    handler(request, response);
  });
  await new Promise<void>((resolve) => server.listen(0, address, resolve));
  context.after(() => {
    server.closeAllConnections();
    server.close();
  });
  return { host: `${address}:${(server.address() as AddressInfo).port}`, seen };
}

/** Time that passes only when somebody sleeps or a test says so. */
export interface SteppedClock extends Clock {
  readonly sleepsMs: number[];
  advance(ms: number): void;
}

export function steppedClock(): SteppedClock {
  let nowMs = Date.UTC(2026, 0, 1);
  const sleepsMs: number[] = [];
  return {
    sleepsMs,
    advance: (ms) => {
      nowMs += ms;
    },
    nowMs: () => nowMs,
    monotonicNs: () => BigInt(nowMs) * 1_000_000n,
    sleep: async (ms) => {
      sleepsMs.push(ms);
      nowMs += ms;
    },
  };
}

export interface Pull extends ImageOptions {
  readonly reference?: string;
  readonly clock?: Clock;
  readonly client?: RegistryClientOptions;
}

/** Pulls `<host>/app:v1` and answers the names of its layers' files; a failed pull leaves none. */
export async function pull(context: TestContext, host: string, options: Pull = {}): Promise<string[]> {
  const directory = await mkdtemp(join(tmpdir(), "oci-misbehaving-"));
  context.after(() => rm(directory, { recursive: true, force: true }));
  const { signal } = new AbortController();
  await using client = new RegistryClient({
    clock: options.clock ?? steppedClock(),
    random: () => 0,
    ...options.client,
  });
  const source = client.image(parseImageReference(options.reference ?? `${host}/app:v1`), options);
  try {
    const resolved = await resolveManifest(source, hostPlatform(), signal);
    const found = await resolveImage(source, resolved, hostPlatform(), defaultImageLimits, signal);
    await fetchLayers(source, found, directory, { signal });
  } catch (error) {
    assert.deepEqual(await readdir(directory), [], "a failed pull leaves no file");
    throw error;
  }
  return await readdir(directory);
}

export const fails = (reason: ErrorReason, words: RegExp) => (error: unknown) => {
  assert.ok(isServiceError(error, reason), `${String(error)} is not ${reason}`);
  assert.match(error.message, words);
  return true;
};

/** Answers the first `count` requests for the layer with `fail`, and the later ones well. */
export function failFirst(count: number, fail: Handler): Handler {
  let failed = 0;
  return (request, response) => {
    if (request.url?.endsWith(digestOf(layer)) === true && failed < count) {
      failed++;
      fail(request, response);
    } else serve(request, response);
  };
}

/** A registry whose token server, under the same address, gives numbered tokens for `uses` requests each; `behind` answers those. */
export function tokenRegistry(
  uses: number,
  allowed: (authorization: string | undefined) => boolean,
  behind: Handler = serve,
): Handler {
  let issued = 0;
  let left = 0;
  return (request, response) => {
    const host = request.headers.host ?? "";
    if (request.url === "/v2/") return serve(request, response);
    if (request.url?.startsWith("/token") === true) {
      if (!allowed(request.headers.authorization)) return void response.writeHead(401).end();
      left = uses;
      return void response.end(JSON.stringify({ token: `t${++issued}`, expires_in: 300 }));
    }
    if (request.headers.authorization === `Bearer t${issued}` && left-- > 0) return behind(request, response);
    const challenge = `Bearer realm="http://${host}/token",service="svc",scope="repository:app:pull,push"`;
    return void response.writeHead(401, { "www-authenticate": challenge }).end();
  };
}
