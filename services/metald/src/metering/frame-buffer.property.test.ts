import assert from "node:assert/strict";
import { test } from "node:test";
import * as fc from "fast-check";
import { FrameBuffer } from "./frame-buffer.ts";

const deed = fc.oneof(
  fc.constant({ kind: "push" as const }),
  fc.record({ kind: fc.constant("confirm" as const), seq: fc.nat(60) }),
);

test("keeps exactly the newest unconfirmed frames, in order, whatever is pushed and confirmed", async () => {
  await fc.assert(
    fc.asyncProperty(fc.array(deed, { maxLength: 60 }), fc.integer({ min: 1, max: 8 }), async (deeds, limit) => {
      const buffer = new FrameBuffer<{ readonly frameSeq: bigint }>(limit);
      let model: number[] = [];
      let pushed = 0;
      let confirmed = 0;
      for (const { kind, ...rest } of deeds) {
        if (kind === "push") {
          pushed++;
          buffer.push({ frameSeq: BigInt(pushed) });
          model = [...model, pushed].slice(-limit);
        } else {
          const seq = Math.min("seq" in rest ? rest.seq : 0, pushed); // nobody confirms what was not sent
          buffer.confirm(BigInt(seq));
          confirmed = Math.max(confirmed, seq);
          model = model.filter((one) => one > confirmed);
        }
      }
      assert.equal(buffer.length, model.length);
      assert.equal(Number(buffer.settledSeq), (model[0] ?? pushed + 1) - 1);
      const sent: number[] = [];
      if (model.length > 0) {
        for await (const { frameSeq } of buffer.from(new AbortController().signal)) {
          sent.push(Number(frameSeq));
          if (sent.length === model.length) break;
        }
      }
      assert.deepEqual(sent, model);
    }),
  );
});

test("a reader waits for what is still to come, and ends when it is told to", async () => {
  const buffer = new FrameBuffer<{ readonly frameSeq: bigint }>(10);
  const stop = new AbortController();
  const seen: bigint[] = [];
  const reading = (async () => {
    for await (const { frameSeq } of buffer.from(stop.signal)) {
      seen.push(frameSeq);
      buffer.confirm(frameSeq);
      if (frameSeq === 2n) stop.abort();
    }
  })();
  await new Promise((resolve) => setImmediate(resolve));
  buffer.push({ frameSeq: 1n });
  await new Promise((resolve) => setImmediate(resolve));
  buffer.push({ frameSeq: 2n });
  await reading;
  assert.deepEqual(seen, [1n, 2n]);
});
