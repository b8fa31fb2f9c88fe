import assert from "node:assert/strict";
import { once } from "node:events";
import { mkdtemp, rm } from "node:fs/promises";
import { type ClientHttp2Session, connect, type Http2ServerRequest } from "node:http2";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { type TestContext, test } from "node:test";
import { setTimeout as delay } from "node:timers/promises";
import { kib, mib } from "@unkey/base";
import { createLogger } from "@unkey/daemon";
import { Authority } from "@unkey/pki";
import { listenTls } from "./tls-server.ts";

async function startServer(context: TestContext, streamWindowBytes: number | undefined) {
  const directory = await mkdtemp(join(tmpdir(), "tls-server-"));
  context.after(() => rm(directory, { recursive: true, force: true }));
  const authority = Authority.open(join(directory, "ca"), { commonName: "Test" });
  const { certPem: cert, keyPem: key } = authority.issue({
    commonName: "localhost",
    names: { dnsNames: ["localhost"] },
  });
  const requests: Http2ServerRequest[] = [];
  const abort = new AbortController();
  const server = await listenTls({
    host: "127.0.0.1",
    port: 0,
    defaultContext: () => ({ cert, key }),
    maxHeaderBytes: 16 * kib,
    ...(streamWindowBytes === undefined ? {} : { streamWindowBytes }),
    onRequest: (request, response) => {
      requests.push(request);
      response.writeHead(200);
    },
    log: createLogger({ write: () => undefined }),
    abort: abort.signal,
  });
  context.after(async () => {
    abort.abort();
    await server[Symbol.asyncDispose]();
  });
  const session = connect(`https://127.0.0.1:${server.port}`, { ca: authority.certPem, servername: "localhost" });
  context.after(() => session.destroy());
  return { session, requests };
}

/** When it resolves, the server has taken what the client sent before. */
function roundTrip(session: ClientHttp2Session): Promise<void> {
  return new Promise((resolve, reject) => {
    session.ping((error) => (error ? reject(error) : resolve()));
  });
}

for (const windowBytes of [undefined, 512 * kib]) {
  test(`a handler that does not read holds ${windowBytes ?? "HTTP/2's 64 KiB"} a stream, whatever the client has`, async (context) => {
    const { session, requests } = await startServer(context, windowBytes);
    const bound = windowBytes ?? 65_535;
    const bodies = [0, 1, 2].map((fill) => Buffer.alloc(2 * mib, fill));
    const streams = bodies.map(() => session.request({ ":method": "PUT", ":path": "/" }));
    await Promise.all(streams.map((stream) => once(stream, "response")));
    for (const [index, stream] of streams.entries()) stream.end(bodies[index]);
    const held = (): number[] => requests.map((request) => request.stream.readableLength);
    // A window takes several round trips to arrive; more would arrive in those that follow.
    while (held().some((bytes) => bytes < bound)) await delay(5);
    for (let again = 0; again < 10; again++) await roundTrip(session);
    assert.deepEqual(held(), [bound, bound, bound]);
    for (const [index, request] of requests.entries()) {
      const parts: Buffer[] = [];
      for await (const part of request as AsyncIterable<Buffer>) parts.push(part);
      assert.ok(Buffer.concat(parts).equals(bodies[index] ?? Buffer.of()), "all of it arrives when it is read");
    }
  });
}
