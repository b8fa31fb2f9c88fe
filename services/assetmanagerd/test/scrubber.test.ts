import assert from "node:assert/strict";
import { chmodSync, readFileSync, rmSync, statSync, utimesSync, writeFileSync } from "node:fs";
import { test } from "node:test";
import { AssetState } from "@unkey/api/asset";
import type { Digest } from "../src/domain/asset.ts";
import { bytes, contentOf, digestOf, type Fixture, openFixture, prepare, rejectsWith, uploadOf } from "./fixture.ts";

const signal = new AbortController().signal;

/** What a failing disk does: a bit turns, and neither length nor time tell. */
function flip(path: string): void {
  const { mtime, atime } = statSync(path);
  const content = readFileSync(path);
  content[0] = (content[0] ?? 0) ^ 1;
  chmodSync(path, 0o644);
  writeFileSync(path, content);
  chmodSync(path, 0o444);
  utimesSync(path, atime, mtime);
}

const store = (assets: Fixture, text: string, name = text) =>
  assets.actingFor(assets.tenantId, "builderd").uploadAsset(uploadOf(bytes(text), { tenantId: assets.tenantId, name }));

const stateOf = async (assets: Fixture, assetId: string) =>
  (await assets.as("metald").getAsset({ tenantId: assets.tenantId, assetId })).state;

test("the scrubber finds a turned bit that nobody read, and storing the bytes again mends every asset of them", async () => {
  await using assets = await openFixture();
  const { tenantId } = assets;
  const rotten = await store(assets, "will rot");
  const twin = await store(assets, "will rot", "twin");
  const sound = await store(assets, "sound");
  await assets.manager.mustBeWhole();
  flip(assets.blobPath(digestOf(bytes("will rot"))));
  await assets.manager.scrubber.pass(signal);
  for (const { assetId } of [rotten, twin]) assert.equal(await stateOf(assets, assetId), AssetState.ERROR);
  assert.equal(await stateOf(assets, sound.assetId), AssetState.AVAILABLE);
  await assert.rejects(assets.manager.mustBeWhole(), /2 asset/);
  assert.match(assets.metrics.render(), /unkey_assets_corrupt_total 1\n/);
  assert.ok(assets.lines.some((line) => line.includes("stored bytes are wrong")));
  await rejectsWith(prepare(assets, rotten.assetId), "ASSET_NOT_AVAILABLE");
  await rejectsWith(
    contentOf(assets.as("metald").downloadAsset({ tenantId, assetId: rotten.assetId })),
    "ASSET_NOT_AVAILABLE",
  );
  const again = await store(assets, "will rot");
  assert.deepEqual([again.assetId, again.state], [rotten.assetId, AssetState.AVAILABLE]);
  assert.equal(await stateOf(assets, twin.assetId), AssetState.AVAILABLE);
  assert.equal(await contentOf(assets.as("metald").downloadAsset({ tenantId, assetId: twin.assetId })), "will rot");
  await prepare(assets, rotten.assetId);
  await assets.manager.mustBeWhole();
});

test("a read finds the turned bit too, and a VM that has the file keeps it when it is replaced", async () => {
  await using assets = await openFixture();
  const { assetId } = await store(assets, "in use");
  const { staged } = await prepare(assets, assetId);
  const path = assets.blobPath(digestOf(bytes("in use")));
  const { ino } = statSync(path);
  flip(path);
  await rejectsWith(
    contentOf(assets.as("metald").downloadAsset({ tenantId: assets.tenantId, assetId })),
    "ASSET_CORRUPT",
  );
  assert.equal(await stateOf(assets, assetId), AssetState.ERROR);
  await store(assets, "in use");
  assert.notEqual(statSync(path).ino, ino);
  assert.equal(statSync(staged[0]!.path).ino, ino, "nobody's file is swapped under a running VM");
});

test("bytes that come back by themselves are found right by the next round", async () => {
  await using assets = await openFixture();
  const { assetId } = await store(assets, "restored");
  const path = assets.blobPath(digestOf(bytes("restored")));
  rmSync(path);
  await assets.manager.scrubber.pass(signal);
  assert.equal(await stateOf(assets, assetId), AssetState.ERROR);
  writeFileSync(path, "restored", { mode: 0o444 });
  assets.advance(3_600_000);
  await assets.manager.scrubber.pass(signal);
  assert.equal(await stateOf(assets, assetId), AssetState.AVAILABLE);
});

test("staging reads nothing again while the file is the one that was verified, also after a restart", async () => {
  await using first = await openFixture();
  const { assetId, digest } = await store(first, "verified once");
  const reads: Digest[] = [];
  const counting = new Proxy(first.blobs, {
    get: (real, key) => {
      const value: unknown = Reflect.get(real, key);
      if (key !== "read") return typeof value === "function" ? value.bind(real) : value;
      return (wanted: Digest, offset: number, until: AbortSignal) => {
        reads.push(wanted);
        return real.read(wanted, offset, until);
      };
    },
  });
  await using second = await openFixture({ dir: first.dir, store: counting });
  const assets = { ...second, tenantId: first.tenantId };
  await prepare(assets, assetId);
  assert.deepEqual(reads, []);
  const path = assets.blobPath(digest as Digest);
  utimesSync(path, new Date(), new Date()); // somebody touched it: its content may be anything
  await prepare(assets, assetId);
  assert.deepEqual(reads, [digest]);
  await prepare(assets, assetId);
  assert.equal(reads.length, 1);
});

test("the scrubber reads no faster than it may, goes on where it was, and rests between rounds", async () => {
  await using first = await openFixture({ scrubBytesPerSecond: 100 });
  const texts = ["a", "b", "c", "d"].map((letter) => letter.repeat(100));
  for (const text of texts) await store(first, text, text.slice(0, 1));
  const slept: number[] = [];
  const read: string[] = [];
  const stop = new AbortController();
  let now = first.parts.clock.nowMs();
  const clock = {
    ...first.parts.clock,
    nowMs: () => now,
    sleep: async (ms: number) => {
      slept.push(ms);
      now += ms;
      if (slept.length === 2) now += 10_000; // as long as the position is not written down each time
      await Promise.resolve();
      if (slept.length === 3) stop.abort(new Error("stopped"));
    },
  };
  const counting = (assets: Fixture) =>
    new Proxy(assets.blobs, {
      get: (real, key) => {
        const value: unknown = Reflect.get(real, key);
        if (key !== "read") return typeof value === "function" ? value.bind(real) : value;
        return (wanted: Digest, offset: number, until: AbortSignal) => {
          read.push(wanted);
          return real.read(wanted, offset, until);
        };
      },
    });
  {
    await using assets = await openFixture({ dir: first.dir, clock, store: counting(first), scrubBytesPerSecond: 100 });
    await assert.rejects(assets.manager.scrubber.pass(stop.signal), /stopped/);
  }
  assert.deepEqual(slept.slice(0, 2), [1000, 1000]);
  const before = read.length;
  assert.equal(before, 3);
  await using assets = await openFixture({ dir: first.dir, clock, store: counting(first) });
  await assets.manager.scrubber.pass(signal);
  const digests = texts.map((text) => digestOf(bytes(text))).toSorted();
  assert.deepEqual(read.slice(before), digests.slice(2), "the two that were read and noted are not read again");
  await assets.manager.scrubber.pass(signal);
  assert.equal(read.length, before + 2, "the next round is not due");
});
