import assert from "node:assert/strict";
import { test } from "node:test";
import { type Digest, digestOf, type ResolvedImage } from "@unkey/oci";
import { LayerFeed } from "./layer-feed.ts";
import type { Assembler, RootfsOptions } from "./worker/image-workers.ts";

const digest = (name: string): Digest => digestOf(Buffer.from(name));
const options: RootfsOptions = {
  isPart: [],
  digests: Promise.resolve([]),
  format: "erofs",
  identity: "test",
  setuid: "keep",
};

function imageOf(...names: readonly string[]): ResolvedImage["layers"] {
  return names.map((name) => ({
    descriptor: { digest: digest(name), sizeBytes: 1, mediaType: "", annotations: {}, platform: undefined },
    diffId: digest(`${name} unpacked`),
  }));
}

/** An assembler that tells what it was told, and starts when it is let. */
function scene(...names: readonly string[]) {
  const told: string[] = [];
  const gate = Promise.withResolvers<void>();
  let starts = 0;
  const assembler: Assembler = {
    add: ({ directory }) => void told.push(directory),
    write: () => Promise.reject(new Error("written")),
    [Symbol.asyncDispose]: async () => void told.push("ended"),
  };
  const feed = new LayerFeed(imageOf(...names), async () => {
    starts++;
    await gate.promise;
    return assembler;
  });
  return { feed, told, gate, starts: () => starts };
}

const settled = () => new Promise((resolve) => setImmediate(resolve));

test("layers are told lowest first, each when it and all below it are here", async () => {
  const { feed, told, gate, starts } = scene("a", "b", "a", "c");
  feed.here(digest("b"), "1");
  feed.start();
  feed.start();
  gate.resolve();
  await settled();
  assert.deepEqual(told, []);
  feed.here(digest("a"), "0");
  assert.deepEqual(told, ["0", "1", "0"], "a layer that the image has twice is told twice");
  feed.here(digest("c"), "3");
  await assert.rejects(feed.write(options), /written/);
  assert.deepEqual(told, ["0", "1", "0", "3"]);
  assert.equal(starts(), 1);
});

test("what came before the process started is told when it has", async () => {
  const { feed, told, gate } = scene("a", "b");
  feed.start();
  feed.here(digest("a"), "0");
  feed.here(digest("b"), "1");
  assert.deepEqual(told, []);
  gate.resolve();
  await settled();
  assert.deepEqual(told, ["0", "1"]);
});

test("a process that was not asked for is started to write, and not to be ended", async () => {
  const { feed, told, gate, starts } = scene("a");
  await feed[Symbol.asyncDispose]();
  assert.equal(starts(), 0);
  feed.here(digest("a"), "0");
  gate.resolve();
  await assert.rejects(feed.write(options), /written/);
  await feed[Symbol.asyncDispose]();
  assert.deepEqual(told, ["0", "ended"]);
});

test("a process that cannot be started is told to who writes, and nothing is left to end", async () => {
  const feed = new LayerFeed(imageOf("a"), () => Promise.reject(new Error("no room")));
  feed.start();
  feed.here(digest("a"), "0");
  await settled();
  await assert.rejects(feed.write(options), /no room/);
  await feed[Symbol.asyncDispose]();
});
