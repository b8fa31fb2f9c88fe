import assert from "node:assert/strict";
import { test } from "node:test";
import { newId, systemClock, type TenantId } from "@unkey/base";
import type { Exchange } from "./exchange.ts";
import type { ManifestStore } from "./manifest-store.ts";
import { ManifestService } from "./manifests.ts";
import type { UploadService } from "./uploads.ts";

test("a tenant whose manifests never end leaves room for another's", async () => {
  const service = new ManifestService({
    manifests: { missing: async () => [] } as unknown as ManifestStore,
    uploads: { store: async () => undefined } as unknown as UploadService,
    bytes: undefined as never, // nothing is pulled
    clock: systemClock,
    released: () => undefined,
  });
  const push = (tenantId: TenantId, whole: Promise<Uint8Array>) => {
    const request = { headers: {}, destroy: () => undefined };
    const exchange = { query: new URLSearchParams(), body: { whole: () => whole }, request, outbox: {} };
    return service.push(exchange as unknown as Exchange, { tenantId, repository: "app" }, "latest");
  };
  const dripping = Promise.withResolvers<Uint8Array>();
  const [hostile, other] = [newId("tenant"), newId("tenant")];
  const pushes = Array.from({ length: 20 }, () => push(hostile, dripping.promise));
  const ended = Promise.allSettled(pushes);
  const digest = `sha256:${"a".repeat(64)}`;
  const manifest = {
    schemaVersion: 2,
    mediaType: "application/vnd.oci.image.manifest.v1+json",
    config: { mediaType: "x/config", digest, size: 1 },
    layers: [],
  };
  const own = push(other, Promise.resolve(Buffer.from(JSON.stringify(manifest))));
  const first = await Promise.race([own, new Promise((resolve) => setImmediate(() => setImmediate(resolve, "waits")))]);
  dripping.reject(new Error("the client fell silent"));
  await ended;
  assert.match(String(first), /^sha256:/);
});
