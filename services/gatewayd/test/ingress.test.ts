import assert from "node:assert/strict";
import { createHash, randomBytes } from "node:crypto";
import { once } from "node:events";
import type { IncomingMessage, Server, ServerResponse } from "node:http";
import { request as httpsRequest } from "node:https";
import type { Duplex } from "node:stream";
import { after, before, test } from "node:test";
import { type TLSSocket, connect as tlsConnect } from "node:tls";
import { deployAndWait } from "./harness/deploying.ts";
import { ask, askH2, openH2 } from "./harness/http.ts";
import { type Gateway, type Surroundings, surroundings } from "./harness/platform.ts";
import { helloProgram, httpProgram } from "./harness/programs.ts";

let around: Surroundings;
let gateway: Gateway;
/** What the app does with a request; each test sets its own. */
let serve: (request: IncomingMessage, response: ServerResponse) => void;
let upgraded: ((request: IncomingMessage, socket: Duplex) => void) | undefined;

before(async () => {
  around = await surroundings();
  gateway = await around.start({ APP_BODY_LIMIT: "1MiB" });
  around.metald.run = httpProgram(
    (request, response) => serve(request, response),
    (server: Server) => server.on("upgrade", (request: IncomingMessage, socket: Duplex) => upgraded?.(request, socket)),
  );
  await deployAndWait(gateway.client(), { app: "web" });
});
after(async () => {
  await gateway?.[Symbol.asyncDispose]();
  await around?.[Symbol.asyncDispose]();
});

const web = (more: Partial<Parameters<typeof ask>[0]> = {}) =>
  ask({ port: gateway.ingressPort, ca: gateway.ca, host: "web.localhost", ...more });

/** Echoes what the app saw. */
function echo(request: IncomingMessage, response: ServerResponse): void {
  const chunks: Buffer[] = [];
  request.on("data", (chunk: Buffer) => chunks.push(chunk));
  request.on("end", () => {
    const { method, url, headers } = request;
    response.setHeader("content-type", "application/json");
    response.end(JSON.stringify({ method, url, headers, body: Buffer.concat(chunks).toString("utf8") }));
  });
}

interface Seen {
  readonly method: string;
  readonly url: string;
  readonly headers: Record<string, string>;
  readonly body: string;
}

test("the app sees the client and nothing that only the gateway may say", async () => {
  serve = echo;
  const answer = await web({
    method: "POST",
    path: "/a/b?c=d%20e",
    body: "hello",
    headers: {
      "x-forwarded-for": "6.6.6.6",
      "x-forwarded-proto": "http",
      "x-forwarded-host": "evil",
      forwarded: "for=6.6.6.6",
      "x-real-ip": "6.6.6.6",
      x_forwarded_for: "6.6.6.6",
      "x-forwarded_proto": "http",
      x_real_ip: "6.6.6.6",
      unkey_principal: "forged",
      proxy: "http://6.6.6.6",
      "unkey-principal": "forged",
      "x-unkey-anything": "forged",
      connection: "close, x-hop",
      "x-hop": "one",
      te: "trailers",
      "proxy-authorization": "Basic x",
      "x-kept": "yes",
      cookie: "a=b; c=d",
    },
  });
  const seen = JSON.parse(answer.body) as Seen;
  const authority = `web.localhost:${gateway.ingressPort}`;
  assert.equal(seen.method, "POST");
  assert.equal(seen.url, "/a/b?c=d%20e");
  assert.equal(seen.body, "hello");
  assert.equal(seen.headers["host"], authority);
  assert.equal(seen.headers["x-forwarded-for"], "127.0.0.1");
  assert.equal(seen.headers["x-forwarded-proto"], "https");
  assert.equal(seen.headers["x-forwarded-host"], authority);
  assert.equal(seen.headers["x-kept"], "yes");
  assert.equal(seen.headers["cookie"], "a=b; c=d");
  for (const name of [
    "forwarded",
    "x-real-ip",
    "x_forwarded_for",
    "x-forwarded_proto",
    "x_real_ip",
    "unkey_principal",
    "proxy",
    "unkey-principal",
    "x-unkey-anything",
    "x-hop",
    "te",
    "proxy-authorization",
  ]) {
    assert.equal(seen.headers[name], undefined, name);
  }
});

test("the client sees the app's answer without hop-by-hop fields", async () => {
  serve = (_request, response) => {
    response.writeHead(418, {
      "set-cookie": ["a=1", "b=2"],
      "x-app": "yes",
      connection: "close, x-secret",
      "x-secret": "hop",
    });
    response.end("teapot");
  };
  const answer = await web();
  assert.equal(answer.status, 418);
  assert.equal(answer.body, "teapot");
  assert.deepEqual(answer.headers["set-cookie"], ["a=1", "b=2"]);
  assert.equal(answer.headers["x-app"], "yes");
  assert.equal(answer.headers["x-secret"], undefined);
});

test("HTTP/2 clients: many requests on one connection, bodies, cookies, HEAD and empty answers", async () => {
  serve = echo;
  using session = await openH2({ port: gateway.ingressPort, ca: gateway.ca, host: "web.localhost" });
  const head = { ":path": "/x", ":authority": `web.localhost:${gateway.ingressPort}` };
  const answers = await Promise.all(
    Array.from({ length: 20 }, (_, i) =>
      askH2(session, { ...head, ":method": "POST", "x-i": String(i), cookie: "a=b" }, Buffer.from(`body ${i}`)),
    ),
  );
  for (const [i, answer] of answers.entries()) {
    const seen = JSON.parse(answer.body) as Seen;
    assert.equal(answer.status, 200);
    assert.equal(seen.body, `body ${i}`);
    assert.equal(seen.headers["x-i"], String(i));
    assert.equal(seen.headers["host"], head[":authority"]);
    assert.ok(!Object.keys(seen.headers).some((name) => name.startsWith(":")));
  }
  serve = (request, response) => {
    response.writeHead(
      request.method === "HEAD" ? 200 : 204,
      request.method === "HEAD" ? { "content-length": "12" } : {},
    );
    response.end();
  };
  const headAnswer = await askH2(session, { ...head, ":method": "HEAD" });
  assert.deepEqual([headAnswer.status, headAnswer.headers["content-length"], headAnswer.body], [200, "12", ""]);
  assert.equal((await askH2(session, { ...head, ":method": "GET" })).status, 204);
  const wrongHost = await askH2(session, { ...head, ":method": "GET", ":authority": "other.localhost" });
  assert.equal(wrongHost.status, 421, "a connection for one host does not serve another");
});

test("a host that no app has is told so, whatever the client accepts", async () => {
  const unknown = await web({ host: "nobody.localhost", insecure: true });
  assert.equal(unknown.status, 404);
  assert.match(unknown.body, /no app named nobody/);
  const page = await web({ host: "nobody.localhost", insecure: true, headers: { accept: "text/html" } });
  assert.match(String(page.headers["content-type"]), /^text\/html/);
  const elsewhere = await web({ host: "example.com", insecure: true });
  assert.equal(elsewhere.status, 404);
  await assert.rejects(web({ host: "nobody.localhost" }), "no certificate is issued for a name that no app has");
});

test("Host and SNI have to agree; Host has to be one valid name", async () => {
  assert.equal((await web({ host: "web.localhost", serverName: "localhost", insecure: true })).status, 421);
  serve = echo;
  const odd = [
    "GET / HTTP/1.1\r\nHost: web.localhost\r\nHost: other.localhost\r\n\r\n",
    "GET / HTTP/1.1\r\n\r\n",
    "GET / HTTP/1.1\r\nHost: web.localhost/../x\r\n\r\n",
    "GET https://web.localhost/ HTTP/1.1\r\nHost: web.localhost\r\n\r\n",
  ];
  for (const text of odd) assert.match(await rawExchange(text), /^HTTP\/1\.1 400 /, JSON.stringify(text));
  assert.match(await rawExchange("TRACE / HTTP/1.1\r\nHost: web.localhost\r\n\r\n"), /^HTTP\/1\.1 405 /);
});

test("requests whose framing two servers could read differently never reach the app", async () => {
  const seen: string[] = [];
  serve = (request, response) => {
    seen.push(`${request.method} ${request.url}`);
    request.resume();
    response.end("ok");
  };
  const smuggled = "GET /smuggled HTTP/1.1\r\nHost: web.localhost\r\n\r\n";
  const head = "POST /outer HTTP/1.1\r\nHost: web.localhost\r\n";
  const attempts = [
    `${head}Content-Length: ${smuggled.length + 5}\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n${smuggled}`,
    `${head}Transfer-Encoding: chunked\r\nContent-Length: 4\r\n\r\n0\r\n\r\n${smuggled}`,
    `${head}Content-Length: 0\r\nContent-Length: ${smuggled.length}\r\n\r\n${smuggled}`,
    `${head}Transfer-Encoding: xchunked\r\n\r\n0\r\n\r\n${smuggled}`,
    `${head}Transfer-Encoding : chunked\r\n\r\n0\r\n\r\n${smuggled}`,
    `${head}Transfer-Encoding: chunked, identity\r\n\r\n0\r\n\r\n${smuggled}`,
    `${head}Content-Length: +5\r\n\r\nabcde${smuggled}`,
    `${head}Content-Length: 0x5\r\n\r\nabcde${smuggled}`,
    `POST /outer HTTP/1.1\r\nHost: web.localhost\r\nX: y\rTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n${smuggled}`,
  ];
  for (const text of attempts) {
    const answer = await rawExchange(text);
    assert.match(answer, /^HTTP\/1\.1 400 /, JSON.stringify(text));
    assert.equal(answer.match(/HTTP\/1\.1/g)?.length, 1, "one answer, and the connection is closed");
  }
  assert.deepEqual(seen, []);
});

/** Writes bytes as they are and reads to the end of the connection. */
async function rawExchange(text: string): Promise<string> {
  const socket = await rawSocket();
  const chunks: Buffer[] = [];
  socket.on("data", (chunk: Buffer) => chunks.push(chunk));
  socket.on("error", () => undefined);
  socket.write(text);
  // An answer that leaves the connection open is enough to judge it.
  await Promise.race([once(socket, "close"), new Promise((resolve) => setTimeout(resolve, 400))]);
  socket.destroy();
  return Buffer.concat(chunks).toString("latin1");
}

async function rawSocket(): Promise<TLSSocket> {
  const socket = tlsConnect({
    host: "127.0.0.1",
    port: gateway.ingressPort,
    ca: gateway.ca,
    servername: "web.localhost",
    ALPNProtocols: ["http/1.1"],
  });
  await once(socket, "secureConnect");
  return socket;
}

test("headers and bodies have limits", async () => {
  serve = echo;
  const huge = await rawExchange(`GET / HTTP/1.1\r\nHost: web.localhost\r\nX: ${"x".repeat(40_000)}\r\n\r\n`);
  assert.match(huge, /^HTTP\/1\.1 431 /);
  const declared = await web({
    method: "POST",
    headers: { "content-length": "1048577" },
    body: Buffer.alloc(1_048_577),
  }).catch((error: NodeJS.ErrnoException) => error);
  // The answer may overtake the body: some clients then see the broken pipe first.
  if (!(declared instanceof Error)) assert.equal(declared.status, 413);
  const fits = await web({ method: "POST", body: Buffer.alloc(1_048_576, "a") });
  assert.equal((JSON.parse(fits.body) as Seen).body.length, 1_048_576);
  using session = await openH2({ port: gateway.ingressPort, ca: gateway.ca, host: "web.localhost" });
  const headers = { ":method": "POST", ":path": "/", ":authority": `web.localhost:${gateway.ingressPort}` };
  const chunked = await askH2(session, headers, Buffer.alloc(2_000_000));
  assert.equal(chunked.status, 413);
});

test("bodies stream both ways, with back-pressure from a slow reader", async () => {
  const total = 64 * 1024 * 1024;
  let produced = 0;
  const block = Buffer.alloc(256 * 1024);
  serve = (_request, response) => {
    const more = () => {
      while (produced < total) {
        produced += block.byteLength;
        if (!response.write(block)) {
          response.once("drain", more);
          return;
        }
      }
      response.end();
    };
    more();
  };
  const request = httpsRequest({
    host: "127.0.0.1",
    port: gateway.ingressPort,
    ca: gateway.ca,
    servername: "web.localhost",
    headers: { host: "web.localhost" },
    agent: false,
  });
  request.end();
  const [response] = (await once(request, "response")) as [IncomingMessage];
  response.pause();
  let before = -1;
  while (before !== produced) {
    before = produced;
    await new Promise((resolve) => setTimeout(resolve, 150));
  }
  assert.ok(produced < total / 2, `the app could send ${produced} bytes that nobody read`);
  let received = 0;
  response.on("data", (chunk: Buffer) => (received += chunk.byteLength));
  response.resume();
  await once(response, "end");
  assert.equal(received, total);

  // The first piece of an answer arrives before the app has ended it.
  const gate = Promise.withResolvers<void>();
  serve = (_request, answer) => {
    answer.write("first");
    void gate.promise.then(() => answer.end("last"));
  };
  const slow = httpsRequest({
    host: "127.0.0.1",
    port: gateway.ingressPort,
    ca: gateway.ca,
    servername: "web.localhost",
    headers: { host: "web.localhost" },
    agent: false,
  });
  slow.end();
  const [early] = (await once(slow, "response")) as [IncomingMessage];
  const [first] = (await once(early, "data")) as [Buffer];
  assert.equal(first.toString(), "first");
  gate.resolve();
  early.resume();
  await once(early, "end");
});

test("a client that leaves ends the app's work", async () => {
  const gone = Promise.withResolvers<void>();
  const begun = Promise.withResolvers<void>();
  serve = (_request, response) => {
    response.write("working");
    response.on("close", () => gone.resolve());
    begun.resolve();
  };
  const request = httpsRequest({
    host: "127.0.0.1",
    port: gateway.ingressPort,
    ca: gateway.ca,
    servername: "web.localhost",
    headers: { host: "web.localhost" },
    agent: false,
  });
  request.on("error", () => undefined);
  request.end();
  await begun.promise;
  request.destroy();
  await gone.promise;
});

test("an app that breaks off or talks nonsense is a 502, or a broken answer, never a whole one", async () => {
  serve = (request) => request.socket.destroy();
  const dead = await web({ method: "POST", body: "x" });
  assert.equal(dead.status, 502);
  assert.match(dead.body, /web does not answer/);
  serve = (request) => request.socket.end("this is not HTTP\r\n\r\n");
  assert.equal((await web({ method: "POST", body: "x" })).status, 502);
  serve = (request, response) => {
    response.writeHead(200, { "content-length": "100" });
    response.write("half", () => request.socket.destroy());
  };
  await assert.rejects(web());
});

test("a request that is safe is tried again on a fresh connection", async () => {
  let calls = 0;
  serve = (request, response) => {
    calls += 1;
    if (calls === 1) request.socket.destroy();
    else response.end("second");
  };
  const answer = await web();
  assert.deepEqual([answer.status, answer.body, calls], [200, "second", 2]);
});

test("WebSockets pass through, also their refusal, and end with the VM", async () => {
  upgraded = (request, socket) => {
    if (request.url === "/refused") {
      socket.end("HTTP/1.1 403 Forbidden\r\ncontent-length: 2\r\nconnection: close\r\n\r\nno");
      return;
    }
    const accept = createHash("sha1")
      .update(`${request.headers["sec-websocket-key"]}258EAFA5-E914-47DA-95CA-C5AB0DC85B11`)
      .digest("base64");
    socket.write(
      `HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Accept: ${accept}\r\n\r\n`,
    );
    socket.on("error", () => undefined);
    socket.write(`seen ${String(request.headers["x-forwarded-for"])}`);
    socket.pipe(socket);
  };
  const handshake = (path: string) =>
    [
      `GET ${path} HTTP/1.1`,
      "Host: web.localhost",
      "Connection: Upgrade",
      "Upgrade: websocket",
      `Sec-WebSocket-Key: ${randomBytes(16).toString("base64")}`,
      "Sec-WebSocket-Version: 13",
      "X-Forwarded-For: 6.6.6.6",
      "",
      "",
    ].join("\r\n");

  const socket = await rawSocket();
  let text = "";
  socket.on("data", (chunk: Buffer) => (text += chunk.toString("latin1")));
  socket.write(handshake("/echo"));
  const until = async (pattern: RegExp) => {
    while (!pattern.test(text)) await once(socket, "data");
  };
  await until(/seen 127\.0\.0\.1/);
  assert.match(text, /^HTTP\/1\.1 101 /);
  assert.match(text.toLowerCase(), /sec-websocket-accept: /);
  socket.write("ping over the tunnel");
  await until(/ping over the tunnel/);

  const refused = await rawSocket();
  let answer = "";
  refused.on("data", (chunk: Buffer) => (answer += chunk.toString("latin1")));
  refused.write(handshake("/refused"));
  await once(refused, "close");
  assert.match(answer, /^HTTP\/1\.1 403 /);
  assert.match(answer, /no$/);

  const other = await rawExchange(
    "GET / HTTP/1.1\r\nHost: web.localhost\r\nConnection: Upgrade\r\nUpgrade: h2c\r\n\r\n",
  );
  assert.match(other, /^HTTP\/1\.1 400 /);

  const ended = once(socket, "close");
  await gateway.client().stopApp({ app: "web" });
  await ended;
  await gateway.client().startApp({ app: "web" });
});

test("an app that is stopped, starts again, is replaced under load, and deleted", async () => {
  const client = gateway.client();
  serve = (_request, response) => void response.end("one");
  assert.equal((await web()).status, 200);
  await client.stopApp({ app: "web" });
  const stopped = await web();
  assert.equal(stopped.status, 503);
  assert.match(stopped.body, /web is stopped[\s\S]*unkey start web/);
  await client.startApp({ app: "web" });
  assert.equal((await web()).status, 200);

  // Requests under way while the release is replaced are answered by the VM that took them.
  const slow = Promise.withResolvers<void>();
  const taken = Promise.withResolvers<void>();
  serve = (request, response) => {
    if (request.url !== "/slow") {
      response.end("old");
      return;
    }
    taken.resolve();
    void slow.promise.then(() => response.end("old and slow"));
  };
  const pending = web({ path: "/slow" });
  await taken.promise;
  const failures: number[] = [];
  const enough = new AbortController();
  const load = (async () => {
    while (!enough.signal.aborted) {
      const { status } = await web();
      if (status !== 200) failures.push(status);
    }
  })();
  around.metald.run = helloProgram("new");
  const { deploymentId } = await client.createDeployment({
    app: "web",
    image: { source: { case: "reference", value: "x" } },
  });
  for await (const deployment of client.watchDeployment({ deploymentId })) {
    if (deployment.url !== "") slow.resolve(); // routed: the old VM now drains
  }
  enough.abort();
  await load;
  assert.deepEqual(failures, []);
  assert.equal((await pending).body, "old and slow");
  assert.equal((await web()).body, "new\n");

  await client.deleteApp({ app: "web" });
  const deleted = await web({ insecure: true });
  assert.equal(deleted.status, 404);
});
