import assert from "node:assert/strict";
import { mkdtempSync, readFileSync, rmSync } from "node:fs";
import { createSecureServer } from "node:http2";
import type { AddressInfo } from "node:net";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { type TestContext, test } from "node:test";
import { digestOf } from "../digest.ts";
import { ociLayerType } from "../documents.ts";
import type { ImageSource } from "../image-source.ts";
import { parseImageReference } from "../reference.ts";
import { streamLayers } from "../stream-layers.ts";
import { describe, fails, type Handler, listen, pull, serve, steppedClock } from "../testing/scripted-registry.ts";
import { makeCertificate, needsOpenssl } from "../testing/test-certificates.ts";
import { RegistryClient } from "./registry-client.ts";

const blobs = Array.from({ length: 6 }, (_, at) => Buffer.from(`blob ${at}`.repeat(100)));
const descriptors = blobs.map((bytes) => ({
  ...describe(ociLayerType, bytes),
  sizeBytes: bytes.length,
  platform: undefined,
  annotations: {},
}));

interface Tokens {
  /** Answers the request for token number `count`. */
  readonly give: (count: number, response: Parameters<Handler>[1]) => void;
  readonly valid: (token: string) => boolean;
}

async function tokenRegistry(context: TestContext, { give, valid }: Tokens) {
  let count = 0;
  const { host, seen } = await listen(context, (request, response) => {
    const { url = "", headers } = request;
    const blob = blobs.find((bytes) => url.endsWith(digestOf(bytes)));
    if (url === "/v2/") return serve(request, response);
    if (url.startsWith("/token")) return give(++count, response);
    if (valid((headers.authorization ?? "").replace("Bearer ", ""))) return void response.end(blob);
    const challenge = `Bearer realm="http://${headers.host}/token",service="s",scope="repository:app:pull"`;
    return void response.writeHead(401, { "www-authenticate": challenge }).end();
  });
  const client = new RegistryClient({ clock: steppedClock(), random: () => 0 });
  context.after(() => client[Symbol.asyncDispose]());
  return { source: client.image(parseImageReference(`${host}/app:v1`)), seen, tokens: () => count };
}

const token = (name: string): string => JSON.stringify({ token: name, expires_in: 300 });

async function readAll(source: ImageSource, signal = new AbortController().signal): Promise<void> {
  await streamLayers(source, descriptors, { signal }, async (_, chunks) => {
    for await (const _chunk of chunks);
  });
}

test("requests side by side share one token, and one renewal of it", async (context) => {
  let current = "t1";
  const { source, tokens } = await tokenRegistry(context, {
    give: (count, response) => void response.end(token((current = `t${count}`))),
    valid: (presented) => presented === current,
  });
  await readAll(source);
  assert.equal(tokens(), 1);
  current = "revoked";
  await readAll(source);
  assert.equal(tokens(), 2);
});

test("a token server that is busy is waited for", async (context) => {
  const { source, tokens } = await tokenRegistry(context, {
    give: (count, response) =>
      count < 3 ? void response.writeHead(429, { "retry-after": "1" }).end() : void response.end(token("t")),
    valid: (presented) => presented === "t",
  });
  await readAll(source);
  assert.ok(tokens() >= 3);
});

test("whoever asked for a shared token may go; the others get theirs", async (context) => {
  const asked = Promise.withResolvers<void>();
  const { source } = await tokenRegistry(context, {
    give: (count, response) => {
      if (count > 1) return void response.end(token("t"));
      asked.resolve(); // and no answer
    },
    valid: (presented) => presented === "t",
  });
  const [descriptor] = descriptors;
  assert.ok(descriptor !== undefined);
  const first = new AbortController();
  const going = source.canRead(descriptor, first.signal);
  await asked.promise;
  const staying = source.canRead(descriptor, new AbortController().signal);
  first.abort(new Error("gone"));
  await assert.rejects(going, /gone/);
  assert.equal(await staying, true);
});

test("the first layer that fails ends the others, and nothing runs on", async (context) => {
  const { source } = await tokenRegistry(context, {
    give: (_, response) => void response.end(token("t")),
    valid: (presented) => presented === "t",
  });
  const { signal } = new AbortController();
  let open = 0;
  const wrong = descriptors.map((each, at) => (at === 2 ? { ...each, sizeBytes: each.sizeBytes - 1 } : each));
  await assert.rejects(
    streamLayers(source, wrong, { signal }, async (_, chunks) => {
      open++;
      try {
        for await (const _chunk of chunks);
      } finally {
        open--;
      }
    }),
    fails("IMAGE_DIGEST_MISMATCH", /instead of/),
  );
  assert.equal(open, 0);
});

test("each transfer has a connection of its own, where HTTP/2 is offered too", {
  skip: needsOpenssl,
}, async (context) => {
  const directory = mkdtempSync(join(tmpdir(), "oci-h2-"));
  context.after(() => rmSync(directory, { recursive: true, force: true }));
  const tls = makeCertificate(directory, "registry", { names: "IP:127.0.0.1" });
  const versions = new Set<string>();
  const server = createSecureServer(
    { cert: tls.certificatePem, key: readFileSync(tls.keyFile), allowHTTP1: true },
    (request, response) => {
      versions.add(request.httpVersion);
      serve(request as never, response as never);
    },
  );
  await new Promise<void>((resolve) => server.listen(0, "127.0.0.1", resolve));
  context.after(() => void server.close());
  const host = `127.0.0.1:${(server.address() as AddressInfo).port}`;
  await pull(context, host, { client: { caCertificates: [tls.certificatePem] } });
  assert.deepEqual([...versions], ["1.1"]);
});
