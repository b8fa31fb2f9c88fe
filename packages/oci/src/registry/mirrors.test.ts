import assert from "node:assert/strict";
import { type TestContext, test } from "node:test";
import { digestOf } from "../digest.ts";
import { ociLayerType } from "../documents.ts";
import { resolveManifest } from "../image-source.ts";
import { hostPlatform } from "../platform.ts";
import { parseImageReference } from "../reference.ts";
import {
  config,
  describe,
  fails,
  type Handler,
  layer,
  listen,
  manifest,
  pull,
  serve,
  steppedClock,
} from "../testing/scripted-registry.ts";
import { RegistryClient, type RegistryMirror } from "./registry-client.ts";

const signal = new AbortController().signal;
const down: Handler = (_, response) => void response.writeHead(503).end();
const layerDescriptor = {
  ...describe(ociLayerType, layer),
  sizeBytes: layer.length,
  platform: undefined,
  annotations: {},
};

async function mirrored(context: TestContext, mirror: Handler, origin: Handler, options: Partial<RegistryMirror> = {}) {
  const [front, back] = [await listen(context, mirror), await listen(context, origin)];
  const mirrors = new Map([[back.host, [{ host: front.host, prefix: "", resolvesTags: false, ...options }]]]);
  const gets = (seen: typeof front.seen) => seen.map(({ url }) => url).filter((url) => url !== "/v2/");
  return {
    host: back.host,
    client: { mirrors },
    mirrorGets: () => gets(front.seen),
    originGets: () => gets(back.seen),
    mirrorSeen: front.seen,
  };
}

test("a tag is asked of the origin, what its digests name of the mirror, without the login", async (context) => {
  const login = { username: "user", password: "secret" };
  const guarded: Handler = (request, response) =>
    request.headers.authorization === undefined && request.url !== "/v2/"
      ? void response.writeHead(401, { "www-authenticate": "Basic" }).end()
      : serve(request, response);
  const place = await mirrored(context, serve, guarded, { prefix: "cache/" });
  await pull(context, place.host, { client: place.client, credentials: login });
  assert.deepEqual(new Set(place.originGets()), new Set(["/v2/app/manifests/v1"]));
  assert.deepEqual(
    place.mirrorGets(),
    [config, layer].map((blob) => `/v2/cache/app/blobs/${digestOf(blob)}`),
  );
  assert.ok(place.mirrorSeen.every(({ authorization }) => authorization === undefined));
});

test("a mirror that may say what tags stand for is asked for them, and a digest is asked of any mirror", async (context) => {
  const tags = await mirrored(context, serve, down, { resolvesTags: true });
  await pull(context, tags.host, { client: tags.client });
  assert.deepEqual(tags.originGets(), []);
  const pinned = await mirrored(context, serve, down);
  await pull(context, pinned.host, { client: pinned.client, reference: `${pinned.host}/app@${digestOf(manifest)}` });
  assert.deepEqual(pinned.originGets(), []);
});

test("a mirror that is down or lacks the image is told and passed over", async (context) => {
  for (const mirror of [down, (_: unknown, response: Parameters<Handler>[1]) => void response.writeHead(404).end()]) {
    const place = await mirrored(context, mirror, serve, { resolvesTags: true });
    const told: string[] = [];
    const clock = steppedClock();
    await pull(context, place.host, { client: place.client, clock, onRetry: (reason) => told.push(reason) });
    assert.ok(
      told.some((reason) => reason.startsWith("mirror 127.0.0.1:")),
      told.join("\n"),
    );
    assert.equal(place.originGets().length, 3);
  }
});

test("a layer that breaks at the mirror goes on at the origin", async (context) => {
  const cutting: Handler = (request, response) => {
    if (request.url?.endsWith(digestOf(layer)) !== true) return serve(request, response);
    if (request.headers.range !== undefined) return void response.writeHead(500).end();
    response.writeHead(200, { "content-length": String(layer.length) });
    return void response.write(layer.subarray(0, 40_000), () => response.socket?.destroy());
  };
  const ranges: (string | undefined)[] = [];
  const place = await mirrored(context, cutting, (request, response) => {
    if (request.url?.includes("/blobs/") === true) ranges.push(request.headers.range);
    serve(request, response);
  });
  assert.equal((await pull(context, place.host, { client: place.client })).length, 1);
  assert.match(ranges[0] ?? "", /^bytes=[1-9]\d*-$/);
});

test("hostile: a mirror that sends other bytes is not asked again", async (context) => {
  const lying: Handler = (request, response) =>
    request.url?.includes("/blobs/") === true
      ? void response.end(Buffer.alloc(request.url.endsWith(digestOf(layer)) ? layer.length : config.length, "x"))
      : serve(request, response);
  const place = await mirrored(context, lying, serve);
  // The config is small enough to be asked elsewhere at once.
  assert.equal((await pull(context, place.host, { client: place.client })).length, 1);
  assert.equal(place.mirrorGets().length, 1);

  const layerOnly = await mirrored(
    context,
    (request, response) =>
      request.url?.endsWith(digestOf(layer)) === true ? lying(request, response) : serve(request, response),
    serve,
  );
  await using client = new RegistryClient({ ...layerOnly.client, clock: steppedClock() });
  const source = client.image(parseImageReference(`${layerOnly.host}/app:v1`));
  const read = async () => {
    const parts: Uint8Array[] = [];
    for await (const chunk of source.openLayer(layerDescriptor, { signal })) parts.push(chunk);
    return Buffer.concat(parts);
  };
  // What was handed on cannot be taken back; the next try goes past the mirror.
  await assert.rejects(read(), fails("IMAGE_DIGEST_MISMATCH", /has the digest/));
  assert.deepEqual(await read(), layer);
  assert.equal(layerOnly.mirrorGets().length, 1);
});

test("whether a caller can read is asked of the origin alone, with the login, reading nothing", async (context) => {
  const login = { username: "user", password: "secret" };
  let status = 200;
  const origin: Handler = (request, response) => {
    if (request.url === "/v2/") return serve(request, response);
    if (request.headers.authorization === undefined)
      return void response.writeHead(401, { "www-authenticate": "Basic" }).end();
    return void response.writeHead(status, { location: "https://elsewhere.example/" }).end();
  };
  const place = await mirrored(context, serve, origin, { resolvesTags: true });
  await using client = new RegistryClient({ ...place.client, clock: steppedClock() });
  const source = client.image(parseImageReference(`${place.host}/app:v1`), { credentials: login });
  for (const [answer, readable] of [
    [200, true],
    [307, true],
    [404, false],
    [403, false],
    [405, false],
    [500, false],
  ] as const) {
    status = answer;
    assert.equal(await source.canRead(layerDescriptor, signal), readable, String(answer));
  }
  const anonymous = client.image(parseImageReference(`${place.host}/app:v1`));
  assert.equal(await anonymous.canRead(layerDescriptor, signal), false);
  assert.equal(source.registry, place.host);
  assert.deepEqual(place.mirrorGets(), []);
});

test("another tag of the repository is read with the same login", async (context) => {
  const { host, seen } = await listen(context, serve);
  await using client = new RegistryClient({ clock: steppedClock() });
  const source = client.image(parseImageReference(`${host}/app@${digestOf(manifest)}`));
  const related = source.related("sha256-0.sig");
  assert.ok(related !== undefined);
  assert.equal((await resolveManifest(related, hostPlatform(), signal)).digest, digestOf(manifest));
  assert.ok(seen.some(({ url }) => url === "/v2/app/manifests/sha256-0.sig"));
  assert.equal(related.name, `${host}/app:sha256-0.sig`);
});
