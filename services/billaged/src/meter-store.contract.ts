import assert from "node:assert/strict";
import { suite, test } from "node:test";
import { Meter } from "./domain/meter.ts";
import type { MeterStore, PendingBatch } from "./ports.ts";

const batch = (seq: number): PendingBatch => ({
  seq,
  batchId: `batch ${seq}`,
  zstd: Uint8Array.of(seq, 255, 0),
  bytes: 100 + seq,
  sha256: new Uint8Array(32).fill(seq),
});

/** What every store of the meter promises. `create` yields a folder-like thing that can be opened again. */
export function meterStoreContract(
  name: string,
  create: () => Promise<{ open(): Promise<MeterStore>; remove(): Promise<void> }>,
): void {
  suite(`${name} keeps the contract of the meter's store`, () => {
    test("keeps batches in order until they are settled, across openings", async () => {
      const place = await create();
      try {
        {
          await using store = await place.open();
          await store.save([batch(2), batch(1)]);
          await store.save([batch(3), batch(2)]);
        }
        await using store = await place.open();
        assert.deepEqual(
          (await store.pending(0, 10)).map((b) => ({ ...b, zstd: [...b.zstd], sha256: b.sha256[0] })),
          [1, 2, 3].map((seq) => ({ ...batch(seq), zstd: [seq, 255, 0], sha256: seq })),
        );
        assert.deepEqual(
          (await store.pending(1, 1)).map(({ seq }) => seq),
          [2],
        );
        assert.deepEqual(await store.backlog(), { batches: 3, bytes: 9 });
        await store.settle("batch 2");
        await store.settle("batch 2");
        await store.settle("never heard of");
        assert.deepEqual(
          (await store.pending(0, 10)).map(({ seq }) => seq),
          [1, 3],
        );
      } finally {
        await place.remove();
      }
    });

    test("moves the checkpoint with its batches", async () => {
      const place = await create();
      try {
        let epoch: bigint;
        const snapshot = new Meter(5n).snapshot();
        {
          await using store = await place.open();
          epoch = store.logEpoch;
          assert.equal(await store.checkpoint(), undefined);
          await store.save([batch(1)], { position: { segment: 3, offset: 70 }, snapshot });
          await store.save([], { position: { segment: 4, offset: 12 }, snapshot });
          await store.save([batch(2)]);
        }
        await using store = await place.open();
        assert.equal(store.logEpoch, epoch);
        assert.deepEqual(await store.checkpoint(), { position: { segment: 4, offset: 12 }, snapshot });
      } finally {
        await place.remove();
      }
    });
  });
}
