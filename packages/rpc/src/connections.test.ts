import assert from "node:assert/strict";
import { writeFileSync } from "node:fs";
import { constants, createSecureServer } from "node:http2";
import type { AddressInfo } from "node:net";
import { join } from "node:path";
import { test } from "node:test";
import { setTimeout as delay } from "node:timers/promises";
import { connect as connectTls } from "node:tls";
import { type Clock, type ServiceError, systemClock } from "@unkey/base";
import { ensureIdentity } from "@unkey/pki";
import {
  assetId,
  authority,
  chunks,
  collect,
  dir,
  hourMs,
  identityOf,
  open,
  rejectsWith,
  stack,
  startServer,
  trustDomain,
} from "./testing/rpc-fixture.ts";

test("draining lets a running stream finish and refuses what comes after", async () => {
  const { server, started, release } = await startServer();
  const { assets } = open(server.port);
  const download = collect(assets.downloadAsset({ assetId }));
  await started.promise;
  const stopped = server[Symbol.asyncDispose]();
  await rejectsWith(open(server.port).assets.uploadAsset(chunks()), "DEPENDENCY_UNAVAILABLE");
  release.resolve();
  assert.deepEqual(
    (await download).map((part) => Buffer.from(part.chunk).toString()),
    ["one", "two"],
  );
  await stopped;
  await server[Symbol.asyncDispose](); // twice is harmless
});

test("the grace deadline cuts off what does not finish", async () => {
  const abort = new AbortController();
  const { server, started } = await startServer({ abort: abort.signal });
  const download = collect(open(server.port).assets.downloadAsset({ assetId: "endless" }));
  await started.promise;
  const stopped = server[Symbol.asyncDispose]();
  abort.abort(new Error("grace is over"));
  await rejectsWith(download, "SHUTTING_DOWN");
  await stopped;
});

test("renewed certificates reach both ends without dropping a running call", async () => {
  const serverIdentity = identityOf("assetmanagerd");
  const clientIdentity = identityOf("metald");
  const { server, started, release } = await startServer({ identity: serverIdentity.source });
  const { assets } = open(server.port, { identity: clientIdentity.source });
  const download = collect(assets.downloadAsset({ assetId }));
  await started.promise;

  const later: Clock = { ...systemClock, nowMs: () => Date.now() + 13 * hourMs };
  const serials = () => [serverIdentity, clientIdentity].map(({ source }) => source.current.certificate.serialNumber);
  const before = serials();
  for (const [identity, service] of [
    [serverIdentity, "assetmanagerd"],
    [clientIdentity, "metald"],
  ] as const) {
    assert.equal(ensureIdentity(authority, identity.path, { id: { trustDomain, service } }, later), true);
    assert.equal(identity.source.reload(), true);
  }
  assert.notDeepEqual(serials(), before);
  const shown = await new Promise<string | undefined>((resolve) => {
    const { caPem, certPem, keyPem } = clientIdentity.source.current;
    const socket = connectTls(
      { host: "127.0.0.1", port: server.port, ca: caPem, cert: certPem, key: keyPem, ALPNProtocols: ["h2"] },
      () => {
        resolve(socket.getPeerX509Certificate()?.serialNumber);
        socket.destroy();
      },
    );
  });
  assert.equal(shown, serials()[0]);
  assert.equal((await assets.getAsset({ assetId })).assetId, assetId);
  release.resolve();
  assert.equal((await download).length, 2);
});

test("a connection that breaks is opened again, to wherever the peer then listens", async () => {
  const file = join(dir, "address.json");
  const announce = (port: number) => writeFileSync(file, JSON.stringify({ addresses: { rpc: `127.0.0.1:${port}` } }));
  const first = await startServer();
  announce(first.server.port);
  const { assets, channel } = open(0, { address: { file } });
  await channel.ping();
  assert.equal((await assets.getAsset({ assetId })).assetId, assetId);
  await first.server[Symbol.asyncDispose]();
  const second = await startServer();
  announce(second.server.port);
  assert.equal((await assets.getAsset({ assetId })).assetId, assetId);
  assert.equal(second.seen.length, 1);
});

test("an idempotent call is repeated while the peer is away, another one is not", async () => {
  const waits: number[] = [];
  const clock: Clock = {
    ...systemClock,
    sleep: (ms) => {
      waits.push(ms);
      return Promise.resolve();
    },
  };
  const { assets } = open(1, { clock });
  await rejectsWith(assets.getAsset({ assetId }), "DEPENDENCY_UNAVAILABLE", /assetmanagerd cannot be reached/);
  assert.equal(waits.length, 2);
  await rejectsWith(assets.queryAssets({ query: {} }), "DEPENDENCY_UNAVAILABLE");
  await rejectsWith(assets.uploadAsset(chunks()), "DEPENDENCY_UNAVAILABLE");
  assert.equal(waits.length, 2);
});

test("a peer that dies in the middle of a call is unavailable, unary and stream", async () => {
  const abort = new AbortController();
  const { server, seen, started } = await startServer({ abort: abort.signal });
  const { assets } = open(server.port);
  const slow = assets.getAsset({ assetId: "slow" }, { timeoutMs: 10_000 });
  const stream = collect(assets.downloadAsset({ assetId: "endless" }));
  while (seen.length === 0) await delay(5);
  await started.promise;
  const calls = Promise.allSettled([slow, stream]);
  abort.abort();
  await server[Symbol.asyncDispose]();
  for (const result of await calls) {
    assert.equal(result.status, "rejected");
    assert.equal((result.reason as ServiceError).code, "unavailable", String(result.reason));
  }
});

test("refused and killed streams and cut connections are unavailable, whatever code the transport guesses", async () => {
  const { caPem, certPem, keyPem } = identityOf("assetmanagerd").source.current;
  const codes = [constants.NGHTTP2_REFUSED_STREAM, constants.NGHTTP2_CANCEL, constants.NGHTTP2_INTERNAL_ERROR, -1];
  for (const code of codes) {
    const server = createSecureServer({ ca: caPem, cert: certPem, key: keyPem, requestCert: true });
    server.on("sessionError", () => undefined);
    server.on("stream", (stream) => {
      stream.on("error", () => undefined);
      if (code === -1) stream.session?.socket.destroy();
      else stream.close(code);
    });
    await new Promise<void>((resolve) => server.listen(0, "127.0.0.1", resolve));
    stack.defer(() => new Promise<void>((resolve) => void server.close(() => resolve())));
    const { assets } = open((server.address() as AddressInfo).port, {
      clock: { ...systemClock, sleep: () => Promise.resolve() },
    });
    await rejectsWith(assets.queryAssets({ query: {} }), "DEPENDENCY_UNAVAILABLE");
    await rejectsWith(assets.getAsset({ assetId }), "DEPENDENCY_UNAVAILABLE");
    await rejectsWith(collect(assets.downloadAsset({ assetId })), "DEPENDENCY_UNAVAILABLE");
    await rejectsWith(assets.uploadAsset(chunks(new Uint8Array(10))), "DEPENDENCY_UNAVAILABLE");
  }
});
