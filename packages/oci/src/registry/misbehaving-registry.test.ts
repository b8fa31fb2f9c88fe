import assert from "node:assert/strict";
import { execFileSync } from "node:child_process";
import { existsSync, readFileSync } from "node:fs";
import { mkdtemp, rm } from "node:fs/promises";
import { createServer as createTlsServer } from "node:https";
import type { AddressInfo } from "node:net";
import { networkInterfaces, tmpdir } from "node:os";
import { join } from "node:path";
import { test } from "node:test";
import type { ErrorReason } from "@unkey/base";
import { digestOf } from "../digest.ts";
import { ociLayerType, ociManifestType } from "../documents.ts";
import {
  config,
  describe,
  failFirst,
  fails,
  type Handler,
  image,
  layer,
  listen,
  manifest,
  pull,
  serve,
  steppedClock,
  tokenRegistry,
} from "../testing/scripted-registry.ts";
import { isDenied } from "./address-guard.ts";

const login = { username: "user", password: "pass word:1" };
const basicLogin = `Basic ${Buffer.from("user:pass word:1").toString("base64")}`;

test("a token is fetched once, for pulling only, and serves the whole pull", async (context) => {
  const { host, seen } = await listen(
    context,
    tokenRegistry(100, (authorization) => authorization === undefined),
  );
  await pull(context, host);
  const tokens = seen.filter(({ url }) => url.startsWith("/token"));
  assert.deepEqual(
    tokens.map(({ url }) => url),
    ["/token?service=svc&scope=repository%3Aapp%3Apull"],
  );
});

test("a login goes to the token server only; the registry gets the token", async (context) => {
  const { host, seen } = await listen(
    context,
    tokenRegistry(100, (authorization) => authorization === basicLogin),
  );
  await pull(context, host, { credentials: login });
  for (const { url, authorization } of seen) {
    assert.equal(authorization === basicLogin, url.startsWith("/token"), url);
  }
});

test("a token that ends in the middle of a pull is renewed", async (context) => {
  const { host, seen } = await listen(
    context,
    tokenRegistry(1, () => true),
  );
  assert.equal((await pull(context, host)).length, 1);
  assert.equal(seen.filter(({ url }) => url.startsWith("/token")).length, 3);
});

test("a token server refuses a wrong login and no login", async (context) => {
  const { host } = await listen(
    context,
    tokenRegistry(1, () => false),
  );
  await assert.rejects(pull(context, host, { credentials: login }), fails("REGISTRY_CREDENTIALS_REJECTED", /refuses/));
  await assert.rejects(pull(context, host), fails("REGISTRY_CREDENTIALS_REQUIRED", /without a login/));
});

test("a registry that refuses the tokens it gave denies access, in a bounded number of requests", async (context) => {
  const { host, seen } = await listen(
    context,
    tokenRegistry(0, () => true),
  );
  await assert.rejects(
    pull(context, host, { credentials: login }),
    fails("REGISTRY_ACCESS_DENIED", /does not let this user/),
  );
  assert.ok(seen.length < 8, JSON.stringify(seen));
});

for (const [name, body, words] of [
  ["not JSON", "<html>", /no usable token/],
  ["without a token", "{}", /no usable token/],
  ["with a token that would add headers", JSON.stringify({ token: "a\r\nx: y" }), /no usable token/],
  ["of endless length", "x".repeat(300_000), /over 262144 bytes/],
] as const) {
  test(`hostile: a token answer ${name} is refused`, async (context) => {
    const { host } = await listen(context, (request, response) => {
      if (request.url === "/v2/") serve(request, response);
      else if (request.url?.startsWith("/token") === true) response.end(body);
      else response.writeHead(401, { "www-authenticate": `Bearer realm="http://${request.headers.host}/token"` }).end();
    });
    await assert.rejects(pull(context, host), fails("REGISTRY_PROTOCOL_VIOLATED", words));
  });
}

test("hostile: a login is not sent to a token server without TLS", async (context) => {
  const { host } = await listen(context, (request, response) => {
    if (request.url === "/v2/") serve(request, response);
    else response.writeHead(401, { "www-authenticate": 'Bearer realm="http://auth.example/token"' }).end();
  });
  await assert.rejects(pull(context, host, { credentials: login }), fails("REGISTRY_INSECURE", /auth\.example/));
});

test("a blob that lives elsewhere is followed without the login", async (context) => {
  const storage = await listen(context, serve);
  const { host, seen } = await listen(context, (request, response) => {
    if (request.headers.authorization !== basicLogin) response.writeHead(401, { "www-authenticate": "Basic" }).end();
    else if (request.url?.includes("/blobs/") === true) {
      response.writeHead(307, { location: `http://${storage.host}${request.url}` }).end();
    } else serve(request, response);
  });
  await pull(context, host, { credentials: login });
  assert.ok(seen.some(({ authorization }) => authorization === basicLogin));
  assert.equal(storage.seen.length, 2);
  assert.deepEqual(new Set(storage.seen.map(({ authorization }) => authorization)), new Set([undefined]));
});

for (const [name, location, reason, words] of [
  ["in a circle", "/v2/app/blobs/again", "REGISTRY_PROTOCOL_VIOLATED", /without an end/],
  ["to a host without TLS", "http://storage.example/blob", "REGISTRY_INSECURE", /storage\.example/],
  ["to another protocol", "file:///etc/passwd", "REGISTRY_INSECURE", /null|file/],
  ["to nowhere", "http://[", "REGISTRY_PROTOCOL_VIOLATED", /without an end/],
] as const) {
  test(`hostile: a redirect ${name} is refused`, async (context) => {
    const { host } = await listen(context, (request, response) => {
      if (request.url?.includes("/blobs/") === true) response.writeHead(302, { location }).end();
      else serve(request, response);
    });
    await assert.rejects(pull(context, host), fails(reason, words));
  });
}

test("a name that leads to this host without saying so is refused before anything is asked", async (context) => {
  const { host, seen } = await listen(context, serve);
  const reference = `${host.replace("127.0.0.1", "0.0.0.0")}/app:v1`;
  await assert.rejects(
    pull(context, host, { reference, plainHttp: true }),
    fails("REGISTRY_ADDRESS_REFUSED", /leads to 127\.0\.0\.1/),
  );
  assert.deepEqual(seen, []);
});

const ownAddress = Object.values(networkInterfaces())
  .flat()
  .find((each) => each?.family === "IPv4" && !each.internal && !each.address.startsWith("169.254."))?.address;
for (const way of ["redirects to", "takes logins at"]) {
  test(`a registry elsewhere that ${way} this host's loopback is refused`, {
    skip: ownAddress === undefined && "this host has no address but loopback",
  }, async (context) => {
    const inside = await listen(context, (_, response) => response.end('{"token":"secret"}'));
    const url = `http://${inside.host}/metrics?x=y`;
    const { host } = await listen(
      context,
      (request, response) => {
        if (request.url === "/v2/") serve(request, response);
        else if (way === "redirects to") response.writeHead(307, { location: url }).end();
        else response.writeHead(401, { "www-authenticate": `Bearer realm="${url}"` }).end();
      },
      ownAddress,
    );
    await assert.rejects(pull(context, host, { plainHttp: true }), fails("REGISTRY_INSECURE", /127\.0\.0\.1/));
    assert.deepEqual(inside.seen, []);
  });
}

test("metadata services are refused in any spelling, this host unless it was meant", () => {
  for (const address of [
    "169.254.169.254",
    "::ffff:169.254.169.254",
    "168.63.129.16",
    "fe80::1",
    "fd00:ec2::254",
    "",
  ]) {
    assert.ok(isDenied(address, true), address);
  }
  for (const address of ["127.0.0.1", "127.9.9.9", "::1", "::ffff:127.0.0.1", "64:ff9b::7f00:1"]) {
    assert.ok(isDenied(address, false) && !isDenied(address, true), address);
  }
  for (const address of ["64:ff9b::a9fe:a9fe", "64:ff9b::169.254.169.254", "::ffff:a83f:8110"]) {
    assert.ok(isDenied(address, true), address);
  }
  for (const address of ["10.0.0.1", "8.8.8.8", "2001:db8::1", "64:ff9b::808:808"])
    assert.ok(!isDenied(address, false), address);
});

test("429 is waited out for as long as it asks", async (context) => {
  const clock = steppedClock();
  const { host } = await listen(
    context,
    failFirst(2, (_, response) => response.writeHead(429, { "retry-after": "7" }).end()),
  );
  await pull(context, host, { clock });
  assert.deepEqual(clock.sleepsMs, [7000, 7000]);
});

test("429 that asks for an hour fails at once and says so", async (context) => {
  const clock = steppedClock();
  const { host } = await listen(
    context,
    failFirst(99, (_, response) => response.writeHead(429, { "retry-after": "3600" }).end()),
  );
  await assert.rejects(pull(context, host, { clock }), fails("REGISTRY_RATE_LIMITED", /wait 3600 s/));
  assert.deepEqual(clock.sleepsMs, []);
});

test("Retry-After as a date counts from now", async (context) => {
  const clock = steppedClock();
  const date = new Date(clock.nowMs() + 5000).toUTCString();
  const { host } = await listen(
    context,
    failFirst(1, (_, response) => response.writeHead(503, { "retry-after": date }).end()),
  );
  await pull(context, host, { clock });
  assert.deepEqual(clock.sleepsMs, [5000]);
});

test("a server that keeps failing is given up after four tries", async (context) => {
  const clock = steppedClock();
  const { host, seen } = await listen(
    context,
    failFirst(99, (_, response) => response.writeHead(503).end()),
  );
  await assert.rejects(pull(context, host, { clock }), fails("REGISTRY_UNAVAILABLE", /status 503/));
  assert.equal(seen.filter(({ url }) => url.endsWith(digestOf(layer))).length, 4);
  assert.ok(clock.sleepsMs.every((ms) => ms <= 5000));
});

test("a connection cut in the middle of a blob is tried again", async (context) => {
  const { host } = await listen(
    context,
    failFirst(1, (request, response) => {
      response.writeHead(200, { "content-length": String(layer.length) });
      response.write(layer.subarray(0, 1000), () => request.socket.destroy());
    }),
  );
  assert.equal((await pull(context, host)).length, 1);
});

for (const [name, bytes, words] of [
  ["longer than its descriptor", Buffer.concat([layer, Buffer.from("more")]), /100004 bytes instead of 100000/],
  ["shorter than its descriptor", layer.subarray(1), /99999 bytes instead of 100000/],
  ["of other bytes", Buffer.alloc(layer.length, "x"), /has the digest/],
] as const) {
  test(`hostile: a layer ${name} is refused`, async (context) => {
    const { host } = await listen(context, (request, response) => {
      if (request.url?.endsWith(digestOf(layer)) === true) response.end(bytes);
      else serve(request, response);
    });
    await assert.rejects(pull(context, host), fails("IMAGE_DIGEST_MISMATCH", words));
  });
}

test("hostile: a config of other bytes is refused", async (context) => {
  const { host } = await listen(context, (request, response) => {
    if (request.url?.endsWith(digestOf(config)) === true) response.end(Buffer.alloc(config.length, " "));
    else serve(request, response);
  });
  await assert.rejects(pull(context, host), fails("IMAGE_DIGEST_MISMATCH", /config/));
});

const withManifest =
  (bytes: Buffer, headers: Record<string, string> = { "content-type": ociManifestType }): Handler =>
  (request, response) => {
    if (request.url?.includes("/manifests/") === true) response.writeHead(200, headers).end(bytes);
    else serve(request, response);
  };

const changed = (change: object): Buffer => Buffer.from(JSON.stringify({ ...image, ...change }));
for (const [name, handler, reason, words] of [
  ["that is not JSON", withManifest(Buffer.from("<html>")), "IMAGE_MANIFEST_INVALID", /not JSON/],
  ["of Docker's schema 1", withManifest(Buffer.from('{"schemaVersion":1}')), "IMAGE_MANIFEST_INVALID", /schema 1/],
  [
    "sent under another type than its own",
    withManifest(manifest, { "content-type": "application/vnd.docker.distribution.manifest.v2+json" }),
    "IMAGE_MANIFEST_INVALID",
    /was sent as/,
  ],
  [
    "that is an index and an image at once",
    withManifest(changed({ manifests: [] })),
    "IMAGE_MANIFEST_INVALID",
    /at once/,
  ],
  [
    "with a digest that is none",
    withManifest(changed({ layers: [{ mediaType: ociLayerType, digest: "sha256:../../x", size: 1 }] })),
    "IMAGE_MANIFEST_INVALID",
    /not a sha256/,
  ],
  [
    "with a negative size",
    withManifest(changed({ layers: [{ ...image.layers[0], size: -1 }] })),
    "IMAGE_MANIFEST_INVALID",
    /size/,
  ],
  [
    "with more layers than its config",
    withManifest(changed({ layers: [image.layers[0], image.layers[0]] })),
    "IMAGE_MANIFEST_INVALID",
    /2 layers.*1/,
  ],
  [
    "with a layer of terabytes",
    withManifest(changed({ layers: [{ ...image.layers[0], size: 2 ** 45 }] })),
    "IMAGE_TOO_LARGE",
    /layers are over/,
  ],
  [
    "with a layer of unknown type",
    withManifest(changed({ layers: [{ ...image.layers[0], mediaType: "application/x+encrypted" }] })),
    "IMAGE_UNSUPPORTED",
    /encrypted/,
  ],
  ["of endless length", withManifest(Buffer.alloc(5 << 20, " ")), "IMAGE_TOO_LARGE", /manifest is over/],
  [
    "with a digest header that is not its own",
    withManifest(manifest, { "content-type": ociManifestType, "docker-content-digest": `sha256:${"0".repeat(64)}` }),
    "IMAGE_DIGEST_MISMATCH",
    /instead of/,
  ],
  [
    "of an empty index",
    withManifest(Buffer.from('{"schemaVersion":2,"manifests":[]}'), {}),
    "IMAGE_PLATFORM_UNAVAILABLE",
    /offers nothing/,
  ],
] as [string, Handler, ErrorReason, RegExp][]) {
  test(`hostile: a manifest ${name} is refused`, async (context) => {
    const { host } = await listen(context, handler);
    await assert.rejects(pull(context, host), fails(reason, words));
  });
}

test("hostile: an index that contains itself is refused", async (context) => {
  // The digest cannot really be its own, so the server answers every digest with one more level.
  const level = (depth: number): Buffer =>
    Buffer.from(
      JSON.stringify({
        schemaVersion: 2,
        mediaType: "application/vnd.oci.image.index.v1+json",
        manifests: depth === 0 ? [] : [describe("application/vnd.oci.image.index.v1+json", level(depth - 1))],
      }),
    );
  const levels = Array.from({ length: 8 }, (_, depth) => level(depth));
  const { host } = await listen(context, (request, response) => {
    const found = levels.find((bytes) => request.url?.endsWith(digestOf(bytes)));
    if (request.url === "/v2/") serve(request, response);
    else response.end(found ?? levels.at(-1));
  });
  await assert.rejects(pull(context, host), fails("IMAGE_MANIFEST_INVALID", /nests indexes/));
});

test("hostile: other content under a digest reference is refused", async (context) => {
  const { host } = await listen(context, serve);
  const reference = `${host}/app@sha256:${"0".repeat(64)}`;
  await assert.rejects(pull(context, host, { reference }), fails("IMAGE_DIGEST_MISMATCH", /other content/));
});

test("a manifest without a media type of its own is read by its content type", async (context) => {
  const { mediaType: _, ...untyped } = image;
  const { host } = await listen(
    context,
    withManifest(Buffer.from(JSON.stringify(untyped)), { "content-type": `${ociManifestType}; charset=utf-8` }),
  );
  assert.equal((await pull(context, host)).length, 1);
});

test("a registry with a certificate of nobody is not trusted, and not spoken to in the clear either", {
  skip: !existsSync("/usr/bin/openssl") && "openssl is not installed",
}, async (context) => {
  const directory = await mkdtemp(join(tmpdir(), "oci-tls-"));
  context.after(() => rm(directory, { recursive: true, force: true }));
  const [key, certificate] = [join(directory, "key"), join(directory, "cert")];
  execFileSync(
    "openssl",
    [
      "req",
      "-x509",
      "-newkey",
      "ec",
      "-pkeyopt",
      "ec_paramgen_curve:P-256",
      "-nodes",
      "-subj",
      "/CN=x",
      "-keyout",
      key,
      "-out",
      certificate,
    ],
    { stdio: "pipe" },
  );
  const server = createTlsServer({ key: readFileSync(key), cert: readFileSync(certificate) }, serve);
  await new Promise<void>((resolve) => server.listen(0, "127.0.0.1", resolve));
  context.after(() => {
    server.closeAllConnections();
    server.close();
  });
  const host = `127.0.0.1:${(server.address() as AddressInfo).port}`;
  await assert.rejects(
    pull(context, host, { plainHttp: true }),
    fails("REGISTRY_CERTIFICATE_UNTRUSTED", /not trusted here \(.*SELF_SIGNED/),
  );
});
