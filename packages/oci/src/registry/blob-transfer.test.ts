import assert from "node:assert/strict";
import type { ServerResponse } from "node:http";
import { test } from "node:test";
import { gzipSync } from "node:zlib";
import * as fc from "fast-check";
import { digestOf } from "../digest.ts";
import {
  fails,
  type Handler,
  layer,
  listen,
  pull,
  serve,
  steppedClock,
  tokenRegistry,
} from "../testing/scripted-registry.ts";

const isLayer = (url: string | undefined): boolean => url?.endsWith(digestOf(layer)) === true;

/** Sends `count` of the bytes that it announces, then breaks the connection. */
function cut(response: ServerResponse, status: number, headers: Record<string, string>, bytes: Buffer): void {
  response.writeHead(status, headers);
  response.write(bytes, () => response.socket?.destroy());
  if (bytes.length === 0) response.flushHeaders();
}

const from = (range: string | undefined): number => Number(/^bytes=(\d+)-$/.exec(range ?? "bytes=0-")?.[1]);

interface Behaviour {
  /** Where each transfer breaks, counted from the blob's start; when they are used up, transfers end well. */
  readonly cuts: number[];
  /** How a request for a range is answered. */
  readonly range: "206" | "200" | "416" | "wrong start" | "wrong size" | "no header";
  readonly bytes?: Buffer;
}

/** A registry whose connections break while the layer is read. */
function breaking({ cuts, range, bytes = layer }: Behaviour): Handler {
  const left = [...cuts];
  return (request, response) => {
    if (!isLayer(request.url)) return serve(request, response);
    const at = from(request.headers.range);
    if (at > 0 && range === "416") return void response.writeHead(416).end();
    const partial = at > 0 && range !== "200";
    const start = partial ? (range === "wrong start" ? at - 1 : at) : 0;
    const total = range === "wrong size" ? bytes.length + 1 : bytes.length;
    const headers: Record<string, string> = { "content-length": String(bytes.length - start) };
    if (partial && range !== "no header") headers["content-range"] = `bytes ${start}-${bytes.length - 1}/${total}`;
    const end = left.shift();
    const status = partial ? 206 : 200;
    if (end === undefined) response.writeHead(status, headers).end(bytes.subarray(start));
    else cut(response, status, headers, bytes.subarray(start, Math.max(start, end)));
  };
}

const rangesOf = (seen: readonly { url: string; range: string | undefined }[]): (string | undefined)[] =>
  seen.filter(({ url }) => isLayer(url)).map(({ range }) => range);

test("a transfer that breaks goes on where it broke", async (context) => {
  const { host, seen } = await listen(context, breaking({ cuts: [30_000, 70_000], range: "206" }));
  assert.equal((await pull(context, host)).length, 1);
  const [first, ...later] = rangesOf(seen);
  assert.equal(first, undefined);
  assert.equal(later.length, 2);
  const starts = later.map(from);
  assert.ok(
    starts.every((at, n) => at > 0 && at <= [30_000, 70_000][n]!),
    JSON.stringify(starts),
  );
});

test("wherever the connection breaks, the layer arrives whole or not at all", async (context) => {
  await fc.assert(
    fc.asyncProperty(
      fc.array(fc.integer({ min: 0, max: layer.length }), { maxLength: 3 }),
      fc.constantFrom("206", "200", "416", "wrong start", "wrong size", "no header"),
      async (cuts, range) => {
        // Ranges that cannot be had cost one try more.
        const behaviour = { cuts: range === "206" || range === "200" ? cuts : cuts.slice(0, 1), range } as const;
        const { host } = await listen(context, breaking(behaviour));
        assert.equal((await pull(context, host)).length, 1);
      },
    ),
    { numRuns: 40 },
  );
});

for (const range of ["200", "416", "wrong start", "wrong size", "no header"] as const) {
  test(`a registry that answers a range with ${range} is read from the start again`, async (context) => {
    const { host, seen } = await listen(context, breaking({ cuts: [50_000], range }));
    assert.equal((await pull(context, host)).length, 1);
    assert.equal(rangesOf(seen).length, range === "200" ? 2 : 3);
    if (range !== "200") assert.equal(rangesOf(seen).at(-1), undefined);
  });
}

test("a token that ends while a layer is read is renewed, and the layer goes on", async (context) => {
  const { host, seen } = await listen(
    context,
    tokenRegistry(1, () => true, breaking({ cuts: [50_000], range: "206" })),
  );
  assert.equal((await pull(context, host)).length, 1);
  // Refused once without a token or with the last one, taken with a new one: for the first bytes, and for the others.
  const ranges = rangesOf(seen).map((range) => range !== undefined);
  assert.deepEqual(ranges, [false, false, true, true]);
  assert.equal(seen.filter(({ url }) => url.startsWith("/token")).length, 4);
});

test("hostile: a blob that changed between two parts is refused", async (context) => {
  const other = Buffer.alloc(layer.length, "x");
  let parts = 0;
  const { host } = await listen(context, (request, response) => {
    if (!isLayer(request.url)) return serve(request, response);
    const bytes = parts++ === 0 ? layer : other;
    return breaking({ cuts: parts === 1 ? [50_000] : [], range: "206", bytes })(request, response);
  });
  await assert.rejects(pull(context, host), fails("IMAGE_DIGEST_MISMATCH", /has the digest/));
});

test("hostile: a connection that breaks again and again is given up", async (context) => {
  const clock = steppedClock();
  const { host, seen } = await listen(context, (request, response) => {
    if (!isLayer(request.url)) return serve(request, response);
    const at = from(request.headers.range);
    const headers = {
      "content-length": String(layer.length - at),
      "content-range": `bytes ${at}-${layer.length - 1}/*`,
    };
    return cut(response, at === 0 ? 200 : 206, headers, layer.subarray(at, at + 100));
  });
  await assert.rejects(pull(context, host, { clock }), fails("REGISTRY_UNAVAILABLE", /cannot be reached/));
  assert.equal(rangesOf(seen).length, 4);
});

test("hostile: a registry that drips is given up", async (context) => {
  const clock = steppedClock();
  const { host, seen } = await listen(context, (request, response) => {
    if (!isLayer(request.url)) return serve(request, response);
    response.writeHead(200, { "content-length": String(layer.length) });
    let at = 0;
    const drip = (): void => {
      clock.advance(20_000);
      if (!response.destroyed && at < 1000) response.write(layer.subarray(at, ++at), () => setTimeout(drip, 1));
    };
    return drip();
  });
  await assert.rejects(pull(context, host, { clock }), fails("REGISTRY_UNAVAILABLE", /almost nothing/));
  assert.equal(rangesOf(seen).length, 4);
});

test("hostile: more bytes than the descriptor has are not read", async (context) => {
  let sent = 0;
  const { host } = await listen(context, (request, response) => {
    if (!isLayer(request.url)) return serve(request, response);
    response.writeHead(200); // chunked: no length is announced
    const more = (): void => {
      sent += layer.length;
      if (!response.destroyed) response.write(layer, () => setImmediate(more));
    };
    return more();
  });
  await assert.rejects(pull(context, host), fails("IMAGE_DIGEST_MISMATCH", /longer than 100000 bytes/));
  assert.ok(sent < 100 * layer.length, `${sent} bytes were taken`);
});

test("what is stored counts, not what an encoding makes of it", async (context) => {
  const label: Handler = (request, response) => {
    response.setHeader("content-encoding", "gzip"); // some stores label the gzip of a layer so
    serve(request, response);
  };
  const labelled = await listen(context, (request, response) =>
    isLayer(request.url) ? label(request, response) : serve(request, response),
  );
  assert.equal((await pull(context, labelled.host)).length, 1);
  const encoded = await listen(context, (request, response) => {
    if (!isLayer(request.url)) return serve(request, response);
    assert.equal(request.headers["accept-encoding"], "identity");
    return void response.setHeader("content-encoding", "gzip").end(gzipSync(layer));
  });
  await assert.rejects(pull(context, encoded.host), fails("IMAGE_DIGEST_MISMATCH", /instead of 100000, sent as gzip/));
});

test("each pause is told with its reason", async (context) => {
  const clock = steppedClock();
  const told: [string, number][] = [];
  let asked = 0;
  const { host } = await listen(context, (request, response) => {
    if (!isLayer(request.url) || ++asked > 2) return serve(request, response);
    if (asked === 1) return void response.writeHead(429, { "retry-after": "3" }).end();
    return void response.writeHead(502).end();
  });
  const random = () => 0.5;
  await pull(context, host, { clock, client: { random }, onRetry: (reason, waitMs) => told.push([reason, waitMs]) });
  // The second pause is ours alone: half of 500 ms.
  assert.deepEqual(told, [
    [`the registry ${host} limits how often app is pulled; it asks to wait 3 s`, 3125],
    [`the registry ${host} answers with status 502`, 250],
  ]);
  assert.deepEqual(clock.sleepsMs, [3125, 250]);
});

for (const [retryAfter, sleepsMs] of [
  ["0", [0, 0, 0]],
  ["soon", [0, 0, 0]],
  ["-5", [0, 0, 0]],
  ["1.5", [0, 0, 0]],
  ["99999999999999999999999", []],
  ["Fri, 31 Dec 9999 23:59:59 GMT", []],
  ["Thu, 01 Jan 1970 00:00:00 GMT", [0, 0, 0]],
] as const) {
  test(`hostile: 429 without an end and Retry-After: ${retryAfter}`, async (context) => {
    const clock = steppedClock();
    const { host } = await listen(context, (request, response) =>
      isLayer(request.url)
        ? void response.writeHead(429, { "retry-after": retryAfter }).end()
        : serve(request, response),
    );
    await assert.rejects(pull(context, host, { clock }), fails("REGISTRY_RATE_LIMITED", /limits how often/));
    assert.deepEqual(clock.sleepsMs, sleepsMs);
  });
}

test("a host where nobody answers is told after each of three tries", async (context) => {
  const told: string[] = [];
  const clock = steppedClock();
  await assert.rejects(
    pull(context, "127.0.0.1:1", { clock, onRetry: (reason) => told.push(reason) }),
    fails("REGISTRY_UNAVAILABLE", /cannot be reached \(ECONNREFUSED\)/),
  );
  assert.equal(told.length, 2);
});

test("hostile: headers without an end", async (context) => {
  const { host, seen } = await listen(context, (request, response) => {
    if (request.url === "/v2/") return serve(request, response);
    return void response.writeHead(401, { "www-authenticate": `Bearer realm="${"x".repeat(100_000)}"` }).end();
  });
  await assert.rejects(pull(context, host), fails("REGISTRY_PROTOCOL_VIOLATED", /does not speak HTTP as it should/));
  assert.equal(seen.filter(({ url }) => url !== "/v2/").length, 1);
});
