import assert from "node:assert/strict";
import { createServer, type IncomingMessage, type ServerResponse } from "node:http";
import type { AddressInfo } from "node:net";
import { after, before, test } from "node:test";
import { mib, ServiceError, systemClock } from "@unkey/base";
import { Secret } from "@unkey/daemon";
import { S3Client } from "../src/adapters/s3/s3-client.ts";
import { needsSwift, type S3Server, startSwift } from "./swift-server.ts";

const skip = needsSwift;
const signal = AbortSignal.timeout(120_000);
const stack = new AsyncDisposableStack();
let server: S3Server;
let client: S3Client;

before(async () => {
  if (skip) return;
  server = stack.use(await startSwift());
  client = stack.use(new S3Client(server.settings, systemClock));
});
after(() => stack.disposeAsync());

test("an object is stored, measured, read from any offset, and gone", { skip }, async () => {
  const bytes = Buffer.from("0123456789".repeat(1000));
  await client.put("a/one", bytes, signal);
  assert.equal((await client.head("a/one", signal))?.sizeBytes, bytes.length);
  assert.deepEqual(await all(client, "a/one", 0), bytes);
  assert.deepEqual(await all(client, "a/one", 9_995), bytes.subarray(9_995));
  await client.delete("a/one", signal);
  await client.delete("a/one", signal);
  assert.equal(await client.head("a/one", signal), undefined);
  assert.equal(await client.get("a/one", 0, signal), undefined);
});

test("an object in parts: out of order, one sent again, completed once", { skip }, async () => {
  const one = Buffer.alloc(5 * mib, "a");
  const two = Buffer.alloc(1000, "b");
  const uploadId = await client.beginParts("b/parts", signal);
  const second = await client.putPart("b/parts", uploadId, 2, two, signal);
  await client.putPart("b/parts", uploadId, 1, Buffer.alloc(5 * mib, "x"), signal);
  const first = await client.putPart("b/parts", uploadId, 1, one, signal);
  assert.equal(await client.head("b/parts", signal), undefined, "not there before it is whole");
  assert.partialDeepStrictEqual(await client.listParts("b/", signal), [{ key: "b/parts", uploadId }]);
  await client.completeParts("b/parts", uploadId, [first, second], signal);
  assert.deepEqual(await all(client, "b/parts", 0), Buffer.concat([one, two]));
  await client.completeParts("b/parts", uploadId, [first, second], signal);
  assert.deepEqual(await client.listParts("b/", signal), []);
  await client.delete("b/parts", signal);
});

test("an upload in parts that is given up leaves nothing", { skip }, async () => {
  const uploadId = await client.beginParts("c/parts", signal);
  await client.putPart("c/parts", uploadId, 1, Buffer.from("half"), signal);
  await client.abortParts("c/parts", uploadId, signal);
  await client.abortParts("c/parts", uploadId, signal);
  assert.deepEqual(await client.listParts("c/", signal), []);
  assert.equal(await client.head("c/parts", signal), undefined);
});

test("a list goes over its pages", { skip }, async () => {
  const keys = Array.from({ length: 25 }, (_, index) => `d/${String(index).padStart(2, "0")}`);
  for (const key of keys) await client.put(key, Buffer.from(key), signal);
  const listed: string[] = [];
  for await (const { key, sizeBytes } of client.list("d/", signal, 10)) {
    listed.push(key);
    assert.equal(sizeBytes, 4);
  }
  assert.deepEqual(listed, keys);
});

test("a wrong secret is refused at once, and stands in no message", { skip }, async () => {
  await using other = new S3Client({ ...server.settings, secretAccessKey: new Secret("wr0ng") }, systemClock);
  const refusal = await failure(other.put("e", Buffer.from("e"), signal));
  assert.equal(refusal.reason, "BLOB_STORE_REFUSED");
  assert.match(refusal.message, /403, SignatureDoesNotMatch/);
  assert.ok(!JSON.stringify(refusal).includes("wr0ng"));
  assert.equal((await failure(other.check(signal))).reason, "BLOB_STORE_REFUSED");
});

test("a missing bucket is refused by name", { skip }, async () => {
  await using other = new S3Client({ ...server.settings, bucket: "nobody" }, systemClock);
  assert.match((await failure(other.put("e", Buffer.from("e"), signal))).message, /404, NoSuchBucket/);
});

/** Answers of a service in trouble, one request each; the last one repeats. */
const troubles: {
  readonly title: string;
  readonly answers: readonly ((response: ServerResponse, request: IncomingMessage) => void)[];
  readonly requests: number;
  readonly reason?: string;
}[] = [
  {
    title: "503 SlowDown, then success",
    answers: [answer(503, "<Error><Code>SlowDown</Code></Error>", { "retry-after": "0" }), answer(200)],
    requests: 2,
  },
  {
    title: "500, 502 and a cut connection, then success",
    answers: [answer(500), answer(502), cut, answer(200)],
    requests: 4,
  },
  { title: "429 without end", answers: [answer(429)], requests: 5, reason: "BLOB_STORE_UNAVAILABLE" },
  { title: "403 is not tried again", answers: [answer(403)], requests: 1, reason: "BLOB_STORE_REFUSED" },
  {
    title: "an answer without end",
    answers: [(response) => void response.writeHead(200).end(Buffer.alloc(9 * mib))],
    requests: 1,
    reason: "BLOB_STORE_REFUSED",
  },
];

for (const { title, answers, requests, reason } of troubles) {
  test(`a service in trouble: ${title}`, async () => {
    await using service = await troubledService(answers);
    const call = service.client.put("key", Buffer.from("bytes"), signal);
    if (reason === undefined) await call;
    else assert.equal((await failure(call)).reason, reason);
    assert.equal(service.requests.length, requests);
    assert.equal(service.waits(), requests - 1);
  });
}

test("a transfer that breaks goes on where it broke, for the same object only", async () => {
  const text = "0123456789";
  await using service = await troubledService([
    (response) =>
      void response
        .writeHead(200, { etag: '"one"', "content-length": "10" })
        .write(text.slice(0, 4), () => response.destroy()),
    answer(503),
    (response) => void response.writeHead(206, { etag: '"one"', "content-length": "6" }).end(text.slice(4)),
  ]);
  assert.equal((await all(service.client, "key", 0)).toString(), text);
  assert.deepEqual(
    service.requests.map(({ headers }) => [headers.range, headers["if-match"]]),
    [
      [undefined, undefined],
      ["bytes=4-", '"one"'],
      ["bytes=4-", '"one"'],
    ],
  );
});

test("a transfer that breaks without end ends as unavailable", async () => {
  await using service = await troubledService([
    (response, { headers }) =>
      void response
        .writeHead(headers.range === undefined ? 200 : 206, { etag: '"one"', "content-length": "10" })
        .write("", () => response.destroy()),
  ]);
  assert.equal((await failure(all(service.client, "key", 0))).reason, "BLOB_STORE_UNAVAILABLE");
});

/** A service that gives these answers, one request each, the last one again and again, and a client of it that waits for nothing. */
async function troubledService(answers: readonly ((response: ServerResponse, request: IncomingMessage) => void)[]) {
  const requests: IncomingMessage[] = [];
  const http = createServer((request, response) => {
    request.resume();
    (answers[Math.min(requests.length, answers.length - 1)] ?? cut)(response, request);
    requests.push(request);
  });
  await new Promise<void>((resolve) => http.listen(0, "127.0.0.1", resolve));
  const { port } = http.address() as AddressInfo;
  const settings = {
    endpoint: `http://127.0.0.1:${port}`,
    region: "r",
    bucket: "b",
    accessKeyId: "a",
    secretAccessKey: new Secret("s"),
    caFile: undefined,
  };
  let waits = 0;
  const troubled = new S3Client(settings, { ...systemClock, sleep: async () => void waits++ });
  return {
    client: troubled,
    requests,
    waits: () => waits,
    [Symbol.asyncDispose]: async () => {
      await troubled[Symbol.asyncDispose]();
      http.closeAllConnections();
      await new Promise((resolve) => http.close(resolve));
    },
  };
}

function answer(status: number, body = "", headers: Readonly<Record<string, string>> = {}) {
  return (response: ServerResponse): void => void response.writeHead(status, headers).end(body);
}

function cut(response: ServerResponse): void {
  response.destroy();
}

async function all(from: S3Client, key: string, offset: number): Promise<Buffer> {
  const chunks: Uint8Array[] = [];
  for await (const chunk of (await from.get(key, offset, signal)) ?? []) chunks.push(chunk);
  return Buffer.concat(chunks);
}

async function failure(promise: Promise<unknown>): Promise<ServiceError> {
  const error = await promise.then(
    () => assert.fail("it succeeded"),
    (reason: unknown) => reason,
  );
  assert.ok(error instanceof ServiceError, String(error));
  return error;
}
