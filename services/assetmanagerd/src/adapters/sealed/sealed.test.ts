import assert from "node:assert/strict";
import { randomBytes } from "node:crypto";
import { test } from "node:test";
import { mib, type TenantId } from "@unkey/base";
import { seal, sealedOffsetOf, sealedSizeOf, sizeOfSealed, unseal } from "./sealed-stream.ts";
import { parseMasterKey, TenantKeyRing } from "./tenant-key-ring.ts";

const blob = { name: "sha256:one", key: randomBytes(32) };

for (const sizeBytes of [0, 1, mib - 1, mib, mib + 1, 3 * mib, 3 * mib + 77]) {
  test(`${sizeBytes} bytes: sealed to the length foretold, opened from any offset`, async () => {
    const text = randomBytes(sizeBytes);
    const sealed = await sealedBytes(text);
    assert.equal(sealed.length, sealedSizeOf(sizeBytes));
    assert.equal(sizeOfSealed(sealed.length), sizeBytes);
    if (sizeBytes > 16) assert.ok(!sealed.includes(text.subarray(0, 16)));
    for (const offset of new Set([0, 1, mib - 1, mib, mib + 1, sizeBytes - 1, sizeBytes])) {
      if (offset < 0 || offset > sizeBytes) continue;
      assert.deepEqual(await opened(sealed, { offset, sizeBytes }), text.subarray(offset), `from ${offset}`);
    }
  });
}

test("two sealings of the same bytes share nothing", async () => {
  const text = Buffer.alloc(100);
  assert.notDeepEqual(await sealedBytes(text), await sealedBytes(text));
});

const text = randomBytes(2 * mib + 5);
const damages: { readonly title: string; readonly damage: (sealed: Buffer) => Buffer }[] = [
  { title: "a flipped bit in the header", damage: (sealed) => flipped(sealed, 20) },
  { title: "a flipped bit in a segment", damage: (sealed) => flipped(sealed, sealedOffsetOf(mib) + 9) },
  { title: "a flipped bit in a tag", damage: (sealed) => flipped(sealed, sealed.length - 1) },
  { title: "the last segment cut off", damage: (sealed) => sealed.subarray(0, sealedOffsetOf(2 * mib)) },
  { title: "cut within a segment", damage: (sealed) => sealed.subarray(0, -3) },
  { title: "cut within the header", damage: (sealed) => sealed.subarray(0, 30) },
  { title: "empty", damage: () => Buffer.alloc(0) },
  { title: "another segment after the last", damage: (sealed) => Buffer.concat([sealed, sealed.subarray(40)]) },
  {
    title: "two segments exchanged",
    damage: (sealed) => {
      const [a, b, c] = [sealedOffsetOf(0), sealedOffsetOf(mib), sealedOffsetOf(2 * mib)];
      return Buffer.concat([sealed.subarray(0, a), sealed.subarray(b, c), sealed.subarray(a, b), sealed.subarray(c)]);
    },
  },
];
for (const { title, damage } of damages) {
  test(`does not open: ${title}`, async () => {
    const sealed = damage(await sealedBytes(text));
    await assert.rejects(opened(sealed, { offset: 0, sizeBytes: text.length }), { reason: "ASSET_CORRUPT" });
  });
}

test("does not open under another name or with another key", async () => {
  const sealed = await sealedBytes(text);
  const whole = { offset: 0, sizeBytes: text.length };
  await assert.rejects(opened(sealed, whole, { ...blob, name: "sha256:two" }), { reason: "ASSET_CORRUPT" });
  await assert.rejects(opened(sealed, whole, { ...blob, key: randomBytes(32) }), { reason: "ASSET_CORRUPT" });
});

test("a tenant's key stays, differs from another's, and needs the operator's key", async () => {
  const kept = new Map<string, Uint8Array>();
  const store = {
    tenantKey: async (owner: string, fresh: Uint8Array) => {
      if (!kept.has(owner)) kept.set(owner, fresh);
      return kept.get(owner) ?? fresh;
    },
  };
  const master = randomBytes(32);
  const [one, two] = ["tenant_1" as TenantId, "tenant_2" as TenantId];
  const key = await new TenantKeyRing(master, store).keyOf(one);
  assert.deepEqual(await new TenantKeyRing(master, store).keyOf(one), key);
  assert.notDeepEqual(await new TenantKeyRing(master, store).keyOf(two), key);
  assert.ok(!Buffer.from(kept.get(one) ?? []).includes(key), "only the wrapped key is kept");
  kept.set(two, kept.get(one) ?? Buffer.alloc(0));
  await assert.rejects(new TenantKeyRing(master, store).keyOf(two), { reason: "BLOB_KEY_INVALID" });
  await assert.rejects(new TenantKeyRing(randomBytes(32), store).keyOf(one), { reason: "BLOB_KEY_INVALID" });
});

test("the operator's key is 32 bytes in base64", () => {
  const key = randomBytes(32);
  assert.deepEqual(parseMasterKey(key.toString("base64")), key);
  for (const text of ["", "short", key.toString("hex"), `${key.toString("base64")}=`]) {
    assert.throws(() => parseMasterKey(text), { reason: "BLOB_KEY_INVALID" });
  }
});

async function sealedBytes(bytes: Buffer): Promise<Buffer> {
  return Buffer.concat(await Array.fromAsync(seal(inChunks(bytes, 70_000), blob)));
}

async function opened(sealed: Buffer, part: { offset: number; sizeBytes: number }, as = blob): Promise<Buffer> {
  const read = async (offset: number) => inChunks(sealed.subarray(offset), 65_537);
  return Buffer.concat(await Array.fromAsync(unseal(read, as, part)));
}

async function* inChunks(bytes: Buffer, chunkBytes: number): AsyncGenerator<Buffer> {
  for (let at = 0; at < bytes.length; at += chunkBytes) yield bytes.subarray(at, at + chunkBytes);
}

function flipped(bytes: Buffer, at: number): Buffer {
  const copy = Buffer.from(bytes);
  copy[at] = (copy[at] ?? 0) ^ 1;
  return copy;
}
