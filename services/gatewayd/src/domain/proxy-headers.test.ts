import assert from "node:assert/strict";
import { test } from "node:test";
import { appOfHost, hostOfAuthority } from "./host-name.ts";
import { clientHeaders, upstreamHeaders } from "./proxy-headers.ts";

const client = { address: "192.0.2.7", authority: "web.localhost:8443" };

function seenBy(headers: Parameters<typeof upstreamHeaders>[0]): [string, string][] {
  const flat = upstreamHeaders(headers, client);
  return Array.from({ length: flat.length / 2 }, (_, i) => [flat[2 * i] ?? "", flat[2 * i + 1] ?? ""]);
}

test("the gateway's own fields are set once and never taken from the client", () => {
  const seen = seenBy({
    ":method": "GET",
    host: "evil",
    "x-forwarded-for": "6.6.6.6",
    "x-forwarded-port": "1",
    forwarded: "for=6.6.6.6",
    "x-unkey-tenant": "t",
    "unkey-principal": "p",
    accept: "*/*",
  });
  assert.deepEqual(seen, [
    ["host", "web.localhost:8443"],
    ["accept", "*/*"],
    ["x-forwarded-for", "192.0.2.7"],
    ["x-forwarded-proto", "https"],
    ["x-forwarded-host", "web.localhost:8443"],
  ]);
});

test("fields of one connection stay on it, those that Connection names too", () => {
  const hop = {
    connection: "keep-alive, X-Mine",
    "keep-alive": "1",
    te: "trailers",
    upgrade: "h2c",
    "x-mine": "1",
    "transfer-encoding": "chunked",
  };
  assert.deepEqual(
    seenBy({ ...hop, "x-kept": "1" }).map(([name]) => name),
    ["host", "x-kept", "x-forwarded-for", "x-forwarded-proto", "x-forwarded-host"],
  );
  assert.deepEqual(clientHeaders({ ...hop, "set-cookie": ["a", "b"], server: "x" }), {
    "set-cookie": ["a", "b"],
    server: "x",
  });
});

test("a client cannot have the gateway's fields removed by naming them in Connection", () => {
  const names = seenBy({ connection: "x-forwarded-for, host" }).map(([name]) => name);
  assert.deepEqual(names, ["host", "x-forwarded-for", "x-forwarded-proto", "x-forwarded-host"]);
});

test("hosts are read without port, case and final dot; apps are exactly one label above the domain", () => {
  for (const [authority, host] of [
    ["Web.LocalHost:8443", "web.localhost"],
    ["web.localhost.", "web.localhost"],
    ["[::1]:80", undefined],
    ["a b", undefined],
    ["a..b", undefined],
    ["user@web.localhost", undefined],
    ["web.localhost:x", undefined],
    ["", undefined],
  ] as const) {
    assert.equal(hostOfAuthority(authority), host, authority);
  }
  assert.equal(appOfHost("web.localhost", "localhost"), "web");
  for (const host of ["localhost", "a.b.localhost", "weblocalhost", "-a.localhost", "1a.localhost", ".localhost"]) {
    assert.equal(appOfHost(host, "localhost"), undefined, host);
  }
});
