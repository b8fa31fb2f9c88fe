import assert from "node:assert/strict";
import { Readable } from "node:stream";
import { test } from "node:test";
import * as fc from "fast-check";
import { encodeFrame, FrameError, readFrames } from "./frames.ts";
import { failureMessage, parseAnswer } from "./messages.ts";

async function framesOf(bytes: Buffer, cuts: readonly number[], maxBytes = 10_000): Promise<unknown[]> {
  const ends = [...cuts.map((cut) => cut % (bytes.length + 1)), bytes.length].toSorted((a, b) => a - b);
  const pieces = ends.map((end, index) => bytes.subarray(ends[index - 1] ?? 0, end));
  const found = [];
  for await (const frame of readFrames(Readable.from(pieces.filter(({ length }) => length > 0)), maxBytes))
    found.push(frame);
  return found;
}

test("a frame that would be a thousand times its size in memory is refused before it is parsed", async () => {
  const body = Buffer.from(`[${"{},".repeat(2_000_000)}0]`);
  const head = Buffer.alloc(4);
  head.writeUInt32BE(body.length);
  const bytes = Buffer.concat([head, body]);
  await assert.rejects(
    framesOf(bytes, [], 2 ** 24),
    (error) => error instanceof FrameError && /values/.test(error.message),
  );
});

test("a frame that drips in byte by byte is one frame", async () => {
  const bytes = encodeFrame({ text: "x".repeat(20_000) });
  const cuts = Array.from(bytes, (_, index) => index);
  assert.deepEqual(await framesOf(bytes, cuts, 2 ** 20), [{ text: "x".repeat(20_000) }]);
});

test("frames arrive as they were sent, however the pipe cuts them; a torn one at the end is dropped", async () => {
  await fc.assert(
    fc.asyncProperty(
      fc.array(fc.jsonValue(), { maxLength: 6 }),
      fc.array(fc.nat(), { maxLength: 8 }),
      fc.nat(20),
      async (values, cuts, lost) => {
        const plain = values.map((value) => JSON.parse(JSON.stringify(value)) as unknown);
        const bytes = Buffer.concat(values.map(encodeFrame));
        assert.deepEqual(await framesOf(bytes, cuts), plain);
        const torn = await framesOf(bytes.subarray(0, Math.max(0, bytes.length - lost)), cuts);
        assert.deepEqual(torn, plain.slice(0, torn.length));
      },
    ),
    { numRuns: 60 },
  );
});

test("a frame that is announced too long is refused before it is there", async () => {
  await assert.rejects(framesOf(encodeFrame("x".repeat(100)).subarray(0, 4), [], 50), FrameError);
});

test("any JSON is an answer or a FrameError, never another error", () => {
  const keys = [
    "kind",
    "done",
    "total",
    "rootfs",
    "reason",
    "message",
    "metadata",
    "digest",
    "packages",
    "unread",
    "__proto__",
  ];
  const { node } = fc.letrec((tie) => ({
    node: fc.oneof(
      { maxDepth: 4 },
      fc.constantFrom("progress", "done", "failed", "IMAGE_LAYER_INVALID", "constructor", null, -1, 0.5, 7),
      fc.array(tie("node"), { maxLength: 3 }),
      fc.dictionary(fc.constantFrom(...keys), tie("node"), { maxKeys: 6 }),
    ),
  }));
  fc.assert(
    fc.property(node, (message) => {
      try {
        parseAnswer(message);
      } catch (error) {
        assert.ok(error instanceof FrameError, String(error));
      }
    }),
    { numRuns: 500 },
  );
});

test("what went wrong inside a worker is told without its inside", () => {
  const told = JSON.stringify(failureMessage(new TypeError("/secret/path")));
  assert.doesNotMatch(told, /secret/);
  const parsed = parseAnswer(JSON.parse(told));
  assert.ok(parsed.kind === "failed" && parsed.error.reason === "INTERNAL");
});
