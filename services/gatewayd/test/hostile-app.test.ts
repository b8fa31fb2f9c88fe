import assert from "node:assert/strict";
import { createServer, type Socket } from "node:net";
import { after, before, test } from "node:test";
import { deployAndWait } from "./harness/deploying.ts";
import type { FakeProgram } from "./harness/fake-metald.ts";
import { ask, askH2, openH2 } from "./harness/http.ts";
import { type Gateway, type Surroundings, surroundings } from "./harness/platform.ts";
import { appPort } from "./harness/programs.ts";

let around: Surroundings;
let gateway: Gateway;
/** The bytes that the app answers every request with. */
let words: string | Buffer = "";

/** A program that speaks no HTTP but whatever it likes. */
async function rawProgram(address: string): Promise<FakeProgram> {
  const sockets = new Set<Socket>();
  const server = createServer((socket) => {
    sockets.add(socket);
    socket.once("close", () => sockets.delete(socket)).on("error", () => undefined);
    socket.once("data", () => socket.end(words));
  });
  await new Promise<void>((resolve) => server.listen(appPort, address, resolve));
  return {
    output: "",
    [Symbol.asyncDispose]: async () => {
      for (const socket of sockets) socket.destroy();
      await new Promise<void>((resolve) => server.close(() => resolve()));
    },
  };
}

before(async () => {
  around = await surroundings();
  gateway = await around.start();
  around.metald.run = (vm) => rawProgram(vm.ipAddress);
  await deployAndWait(gateway.client(), { app: "raw" });
});
after(async () => {
  await gateway?.[Symbol.asyncDispose]();
  await around?.[Symbol.asyncDispose]();
});

const head = "HTTP/1.1 200 OK\r\n";
const answers: Record<string, string | Buffer> = {
  "of no HTTP": "garbage\r\n\r\n",
  "of nothing": "",
  "with status 999": "HTTP/1.1 999 X\r\ncontent-length: 0\r\n\r\n",
  "with status 099": "HTTP/1.1 099 X\r\ncontent-length: 0\r\n\r\n",
  "with status 600": "HTTP/1.1 600 X\r\ncontent-length: 2\r\n\r\nok",
  "of switching protocols": "HTTP/1.1 101 X\r\nupgrade: x\r\nconnection: upgrade\r\n\r\nbytes",
  "of a thousand early hints": `${"HTTP/1.1 103 X\r\nlink: </a>\r\n\r\n".repeat(1000)}${head}content-length: 0\r\n\r\n`,
  "with a header in Latin-1": Buffer.from(`${head}x-a: \xe9\xff\r\ncontent-length: 0\r\n\r\n`, "latin1"),
  "with a control character in a header": `${head}x-a: \x01\x7f\r\ncontent-length: 0\r\n\r\n`,
  "with header names of HTTP/2": `${head}http2-settings: x\r\nkeep-alive: 1\r\nproxy-connection: x\r\nte: x\r\ncontent-length: 0\r\n\r\n`,
  "with odd header names": `${head}__proto__: a\r\nconstructor: b\r\nx!#$%&'*+^_|~: c\r\ncontent-length: 0\r\n\r\n`,
  "with two content-lengths": `${head}content-length: 2\r\ncontent-length: 3\r\n\r\nabc`,
  "with length and chunks": `${head}content-length: 2\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n`,
  "with broken chunks": `${head}transfer-encoding: chunked\r\n\r\nzz\r\n`,
  "with trailers": `${head}transfer-encoding: chunked\r\n\r\n2\r\nok\r\n0\r\nx-a: b\r\ncontent-length: 9\r\nset-cookie: c\r\n:status: 5\r\n\r\n`,
  "with trailers in Latin-1": Buffer.from(
    `${head}transfer-encoding: chunked\r\n\r\n2\r\nok\r\n0\r\nx-a: \xe9\r\nconnection: x\r\n\r\n`,
    "latin1",
  ),
  "with trailers on no body": `HTTP/1.1 204 X\r\ntransfer-encoding: chunked\r\n\r\n0\r\nx: y\r\n\r\n`,
  "with a body that it must not have": "HTTP/1.1 304 X\r\ncontent-length: 5\r\n\r\nhello",
  "with a body under 204": "HTTP/1.1 204 X\r\n\r\nhello",
  "longer than announced": `${head}content-length: 2\r\n\r\nokHTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n`,
  "shorter than announced": `${head}content-length: 20\r\n\r\nok`,
  "with too many headers": `${head}${Array.from({ length: 3000 }, (_, i) => `x-${i}: 1\r\n`).join("")}content-length: 0\r\n\r\n`,
  "with an endless header": `${head}x: ${"a".repeat(300_000)}\r\n\r\n`,
  "that asks for a login": "HTTP/1.1 407 X\r\nproxy-authenticate: basic\r\ncontent-length: 0\r\n\r\n",
};

test("whatever an app answers, the gateway lives and every client gets an answer or an end", async (t) => {
  const port = gateway.ingressPort;
  const { ca } = gateway;
  const host = "raw.localhost";
  for (const [name, bytes] of Object.entries(answers)) {
    await t.test(`an answer ${name}`, async () => {
      words = bytes;
      using session = await openH2({ port, ca, host });
      const request = { ":path": "/", ":authority": `${host}:${port}` };
      for (const method of ["GET", "HEAD", "POST"]) {
        const body = method === "POST" ? "hi" : undefined;
        const asked = [
          ask({ port, ca, host, method, ...(body === undefined ? {} : { body }) }),
          askH2(session, { ...request, ":method": method }, body === undefined ? undefined : Buffer.from(body)),
        ];
        for (const one of await Promise.allSettled(asked)) {
          if (one.status === "rejected") continue; // broken off, as half an answer has to be
          assert.ok(one.value.status >= 200, `${method}: ${one.value.status}`);
          assert.equal(one.value.headers["proxy-connection"], undefined);
        }
      }
      words = `${head}content-length: 2\r\n\r\nok`;
      assert.equal((await ask({ port, ca, host })).body, "ok");
    });
  }
});
