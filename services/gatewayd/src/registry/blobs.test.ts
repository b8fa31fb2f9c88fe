import assert from "node:assert/strict";
import { test } from "node:test";
import { newId, systemClock, type TenantId } from "@unkey/base";
import type { AssetBytes } from "./asset-bytes.ts";
import type { BlobStore } from "./blob-store.ts";
import { BlobService } from "./blobs.ts";
import type { Exchange } from "./exchange.ts";

test("ranges that read a whole blob for a byte are few at once for each tenant", async () => {
  const reads: TenantId[] = [];
  const held = Promise.withResolvers<void>();
  const service = new BlobService({
    blobs: { find: async () => ({ digest: "", assetId: newId("asset"), sizeBytes: 1000 }) } as unknown as BlobStore,
    bytes: {
      async *read({ acting }: Exchange) {
        reads.push(acting.tenantId);
        await held.promise;
        yield Buffer.from("x");
      },
    } as unknown as AssetBytes,
    clock: systemClock,
    graceMs: 0,
    released: () => undefined,
  });
  const sent: unknown[] = [];
  const pull = (tenantId: TenantId, range?: string) => {
    const response = {
      destroyed: false,
      writeHead: () => undefined,
      write: () => true,
      end: () => sent.push(tenantId),
    };
    const request = { method: "GET", headers: range === undefined ? {} : { range } };
    const exchange = { acting: { tenantId }, request, response } as unknown as Exchange;
    return service.pull(exchange, { tenantId, repository: "app" }, `sha256:${"a".repeat(64)}`);
  };
  const [hostile, other] = [newId("tenant"), newId("tenant")];
  const pulls = [
    ...Array.from({ length: 20 }, () => pull(hostile, "bytes=-1")),
    pull(hostile, "bytes=0-0"),
    pull(other, "bytes=-1"),
  ];
  await new Promise((resolve) => setImmediate(resolve));
  assert.equal(reads.filter((tenantId) => tenantId === hostile).length, 5, "four from within, one from the start");
  assert.equal(reads.filter((tenantId) => tenantId === other).length, 1);
  held.resolve();
  await Promise.all(pulls);
  assert.equal(sent.length, 22);
});
