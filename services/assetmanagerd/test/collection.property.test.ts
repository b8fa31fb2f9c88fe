import assert from "node:assert/strict";
import { mkdtempSync, readdirSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { test } from "node:test";
import { type AssetId, isServiceError, newId } from "@unkey/base";
import * as fc from "fast-check";
import type { AssetManager } from "../src/asset-manager.ts";
import type { Collection } from "../src/collector.ts";
import type { Asset, AssetDescription, Owner } from "../src/domain/asset.ts";
import type { Catalog } from "../src/ports.ts";
import { bytes, digestOf, type Fixture, graceMs, openFixture } from "./fixture.ts";

/*
 * Random work by two tenants and the platform, with crashes: before any call to the catalog, the store or a file, this
 * process may cease to do anything at all, as after SIGKILL, and another one opens what it left. After each step the counts
 * of references and of usage must be what counting the assets gives, leased assets and the parts of whatever there is must
 * be there with their bytes, and a dry run must have said exactly what the pass then did. In the end everything is given up,
 * and nothing may be left.
 */

const contents = ["", "a", "bb", "ccc", "dddd"].map(bytes);
const pick = <T>(items: readonly T[], index: number): T | undefined => items[index % Math.max(1, items.length)];

class Crash extends Error {}

type Step =
  | {
      readonly kind: "upload";
      readonly owner: number;
      readonly content: number;
      readonly attachTo: number | undefined;
      readonly keep: boolean;
    }
  | { readonly kind: "begin"; readonly owner: number; readonly key: number; readonly parts: readonly number[] }
  | {
      readonly kind: "append" | "finish" | "cancel" | "lease" | "delete" | "register";
      readonly which: number;
      readonly content: number;
    }
  | { readonly kind: "release"; readonly which: number }
  | { readonly kind: "pass"; readonly ms: number }
  | { readonly kind: "collect" }
  | { readonly kind: "remove" };

const owner = fc.nat({ max: 2 });
const content = fc.nat({ max: contents.length - 1 });
const which = fc.nat({ max: 20 });
const anyStep: fc.Arbitrary<Step> = fc.oneof(
  {
    weight: 4,
    arbitrary: fc.record({
      kind: fc.constant("upload" as const),
      owner,
      content,
      attachTo: fc.option(which, { nil: undefined }),
      keep: fc.boolean(),
    }),
  },
  {
    weight: 4,
    arbitrary: fc.record({
      kind: fc.constant("begin" as const),
      owner,
      key: fc.nat({ max: 4 }),
      parts: fc.array(which, { maxLength: 2 }),
    }),
  },
  {
    weight: 8,
    arbitrary: fc.record({
      kind: fc.constantFrom(
        "append" as const,
        "finish" as const,
        "cancel" as const,
        "lease" as const,
        "delete" as const,
        "register" as const,
      ),
      which,
      content,
    }),
  },
  { weight: 1, arbitrary: fc.record({ kind: fc.constant("release" as const), which }) },
  {
    weight: 4,
    arbitrary: fc.record({
      kind: fc.constant("pass" as const),
      ms: fc.constantFrom(1, 5_000, graceMs + 1, graceMs + 1, graceMs + 1, 4_000_000),
    }),
  },
  { weight: 7, arbitrary: fc.record({ kind: fc.constant("collect" as const) }) },
  { weight: 3, arbitrary: fc.record({ kind: fc.constant("remove" as const) }) },
);
/** Undefined: the step ends. Else the process dies at that call. */
const death = fc.oneof({ weight: 5, arbitrary: fc.constant(undefined) }, { weight: 1, arbitrary: fc.nat({ max: 25 }) });
const anyWork = fc.array(fc.tuple(anyStep, death), { minLength: 20, maxLength: 60, size: "max" });

class World {
  readonly owners: readonly Owner[] = [newId("tenant"), newId("tenant"), ""];
  readonly leases: {
    readonly owner: Owner;
    readonly id: string;
    readonly assetId: AssetId;
    readonly untilMs: number;
  }[] = [];
  /** The parts of what has been seen. */
  readonly parts = new Map<AssetId, readonly AssetId[]>();
  readonly dir: string;
  nowMs = Date.now();
  #callsLeft: number | undefined;
  #dead = false;
  #fixture: Fixture | undefined;

  constructor(dir: string) {
    this.dir = dir;
  }

  get fixture(): Fixture {
    assert.ok(this.#fixture);
    return this.#fixture;
  }

  get manager(): AssetManager {
    return this.fixture.manager;
  }

  async open(): Promise<void> {
    await this.#fixture?.[Symbol.asyncDispose]();
    this.#dead = false;
    this.#callsLeft = undefined;
    const plain = await openFixture({ dir: this.dir });
    const { catalog } = plain;
    const mortal: Catalog = {
      ...catalog,
      assets: this.#mortal(catalog.assets),
      uploads: this.#mortal(catalog.uploads),
      leases: this.#mortal(catalog.leases),
      blobs: this.#mortal(catalog.blobs),
      collection: this.#mortal(catalog.collection),
      removal: this.#mortal(catalog.removal),
    };
    const clock = { ...plain.parts.clock, nowMs: () => this.nowMs };
    const store = this.#mortal(plain.parts.store);
    const incoming = this.#mortal(plain.parts.incoming);
    const parts = await openFixture({ dir: this.dir, catalog: mortal, store, incoming, clock });
    this.#fixture = {
      ...parts,
      [Symbol.asyncDispose]: async () => {
        await parts[Symbol.asyncDispose]();
        await plain[Symbol.asyncDispose]();
      },
    };
  }

  /** Does `body`; when `dieAt` is a number, the process dies at that call, and another one is started. */
  async live(dieAt: number | undefined, body: () => Promise<void>): Promise<void> {
    this.#callsLeft = dieAt;
    try {
      await body();
    } catch (error) {
      if (!this.#dead && !isServiceError(error)) throw error;
    }
    if (this.#dead) await this.open();
    this.#callsLeft = undefined;
  }

  #mortal<T extends object>(target: T): T {
    return new Proxy(target, {
      get: (real, key) => {
        const value: unknown = Reflect.get(real, key);
        if (typeof value !== "function") return value;
        return (...args: unknown[]): unknown => {
          if (this.#callsLeft !== undefined && this.#callsLeft-- <= 0) this.#dead = true;
          if (!this.#dead) return Reflect.apply(value, real, args) as unknown;
          if (key === "path") return "/nowhere";
          // Some answer an async iterable, most a promise; both fail.
          const crash = Promise.reject(new Crash());
          crash.catch(() => undefined);
          return Object.assign(crash, { [Symbol.asyncIterator]: () => ({ next: () => crash }) });
        };
      },
    });
  }
}

const signal = new AbortController().signal;

async function* once(chunk: Uint8Array) {
  yield await Promise.resolve(chunk);
}

async function assetsOf(world: World, who: Owner): Promise<Asset[]> {
  const seen = await world.fixture.catalog.assets.list({ viewer: who, labels: {}, limit: 10_000 }, world.nowMs);
  return seen.filter((asset) => asset.owner === who);
}

function describe(who: Owner, name: string, attachedTo: AssetId | undefined, keep: boolean): AssetDescription {
  return { owner: who, name, kind: attachedTo === undefined ? "rootfs" : "sbom", labels: {}, attachedTo, keep };
}

function sorted({ marked, swept, freedBytes }: Collection) {
  return {
    marked: marked.ids.toSorted(),
    swept: swept.ids.toSorted(),
    freedBytes,
    counts: [marked.count, swept.count],
  };
}

async function perform(world: World, step: Step): Promise<void> {
  const { manager } = world;
  if (step.kind === "pass") {
    world.nowMs += step.ms;
    return;
  }
  if (step.kind === "collect") {
    const said = await manager.collector.collect(signal, { dryRun: true });
    const did = await manager.collector.collect(signal);
    assert.deepEqual(sorted(said), sorted(did));
    return;
  }
  if (step.kind === "remove") {
    await manager.removal.pass(signal);
    return;
  }
  if (step.kind === "release") {
    const [lease] = world.leases.splice(step.which % Math.max(1, world.leases.length), 1);
    if (lease !== undefined) await manager.staging.releaseLease(lease.owner, lease.id as never);
    return;
  }
  if (step.kind === "begin") {
    const who = world.owners[step.owner] ?? "";
    const fit = (await assetsOf(world, who)).filter(
      ({ state, parts, attachedTo }) => state === "available" && parts.length === 0 && attachedTo === undefined,
    );
    const partIds = step.parts.flatMap((index) => pick(fit, index)?.id ?? []);
    await manager.uploads.begin(describe(who, `key ${step.key}`, undefined, false), `key ${step.key}`, partIds);
    return;
  }
  const chunk = contents[step.content] ?? bytes("");
  const declared = { digest: digestOf(chunk), sizeBytes: chunk.length };
  if (step.kind === "upload") {
    const who = world.owners[step.owner] ?? "";
    const parents = (await assetsOf(world, who)).filter((asset) => asset.state === "available" && !asset.attachedTo);
    const parent = step.attachTo === undefined ? undefined : pick(parents, step.attachTo)?.id;
    await manager.uploads.upload({ ...describe(who, "app", parent, step.keep), ...declared }, once(chunk), signal);
    return;
  }
  const all = (await Promise.all(world.owners.map((who) => assetsOf(world, who)))).flat();
  const upload = pick(
    all.filter((asset) => asset.state === "uploading"),
    step.which,
  );
  const asset = pick(all, step.which);
  if (step.kind === "append" && upload !== undefined) {
    await manager.uploads.append(
      { owner: upload.owner, id: upload.id, offset: upload.receivedBytes },
      once(chunk),
      signal,
    );
  } else if (step.kind === "finish" && upload !== undefined) {
    // As its sender knows it: what was acknowledged, which may be less than what a dead process had written.
    const { receivedBytes } = upload;
    const { incoming } = world.fixture.parts;
    const file = receivedBytes === 0 ? [] : await Array.fromAsync(incoming.read(upload.id, signal));
    const sent = Buffer.concat(file).subarray(0, receivedBytes);
    await manager.uploads.finish(
      { owner: upload.owner, id: upload.id, expected: digestOf(sent), sizeBytes: sent.length },
      signal,
    );
  } else if (step.kind === "cancel" && upload !== undefined) {
    await manager.uploads.cancel({ owner: upload.owner, id: upload.id });
  } else if (step.kind === "register" && asset?.digest !== undefined) {
    const { digest, sizeBytes } = asset;
    await manager.assets.register({
      ...describe(asset.owner, `copy ${step.content}`, undefined, false),
      digest,
      sizeBytes,
    });
  } else if (step.kind === "delete" && asset !== undefined) {
    await manager.assets.giveUp(asset.owner, asset.id);
  } else if (step.kind === "lease" && asset !== undefined) {
    const leaseKey = `vm ${world.nowMs} ${step.which}`;
    const targetDir = join(world.fixture.jails, "vm");
    const placements = [{ assetId: asset.id, fileName: "rootfs" }];
    const request = { tenantId: asset.owner, leaseKey, placements, targetDir, leaseMs: 3_000_000 };
    const { lease } = await manager.staging.prepare(request, signal);
    world.leases.push({ owner: asset.owner, id: lease.id, assetId: asset.id, untilMs: lease.expiresAtMs });
  }
}

/** What must hold between any two steps, counted from the assets alone. */
async function check(world: World): Promise<void> {
  const { catalog, blobs } = world.fixture;
  const counted = new Map<string, number>();
  for (const who of world.owners) {
    const assets = await assetsOf(world, who);
    const bytesStored = assets.reduce((sum, { sizeBytes, receivedBytes }) => sum + sizeBytes + receivedBytes, 0);
    assert.deepEqual(await catalog.assets.usage(who), { storedBytes: bytesStored, assetCount: assets.length });
    for (const { id: wholeId, digest, state, attachedTo, sizeBytes, parts } of assets) {
      const partIds = world.parts.get(wholeId) ?? parts.map(({ id }) => id);
      world.parts.set(wholeId, partIds);
      assert.deepEqual(
        parts.map(({ id, state: partState }) => [id, partState]),
        partIds.map((id) => [id, "available"]),
        "a part is gone before what is made of it",
      );
      if (digest !== undefined) counted.set(digest, (counted.get(digest) ?? 0) + 1);
      if (state === "available" && digest !== undefined) assert.equal(await blobs.size(digest), sizeBytes);
      assert.notEqual(state, "error");
      if (attachedTo !== undefined)
        assert.ok(
          assets.some(({ id }) => id === attachedTo),
          "an attachment without its asset",
        );
    }
    for (const lease of world.leases) {
      if (lease.owner !== who || lease.untilMs <= world.nowMs) continue;
      assert.ok(
        assets.some(({ id }) => id === lease.assetId),
        "a leased asset is gone",
      );
    }
  }
  for (const { digest, refs } of await catalog.blobs.after("", 1000)) {
    assert.equal(refs, counted.get(digest) ?? 0, `${digest} is counted ${refs} times`);
    counted.delete(digest);
  }
  assert.deepEqual(counted, new Map(), "contents that are not counted");
  assert.deepEqual((await catalog.collection.recount(0, 1000)).disagreeing, []);
}

/** Gives everything up; what is left then has leaked. */
async function giveAllUp(world: World): Promise<void> {
  world.nowMs += 10_000_000;
  for (const isFree of [({ parts }: Asset) => parts.length > 0, () => true]) {
    for (const who of world.owners) {
      for (const asset of (await assetsOf(world, who)).filter(isFree)) {
        if (asset.state !== "uploading") await world.manager.assets.giveUp(who, asset.id);
      }
    }
    for (let pass = 0; pass < 3; pass++) await world.manager.collector.collect(signal);
  }
  await world.manager.removal.pass(signal);
  for (const who of world.owners) assert.deepEqual(await assetsOf(world, who), []);
  assert.deepEqual(await Array.fromAsync(world.fixture.blobs.list()), []);
  assert.deepEqual(readdirSync(join(world.dir, "blobs", "incoming")), []);
  assert.deepEqual(await world.fixture.catalog.blobs.after("", 1000), []);
}

test("whatever happens in whatever order, and wherever the process dies, counts agree with the assets and nothing leaks", async () => {
  await fc.assert(
    fc.asyncProperty(anyWork, async (work) => {
      const dir = mkdtempSync(join(tmpdir(), "assets-model-"));
      const world = new World(dir);
      try {
        await world.open();
        for (const [step, dieAt] of work) {
          await world.live(dieAt, () => perform(world, step));
          await check(world);
        }
        await giveAllUp(world);
      } finally {
        await world.fixture[Symbol.asyncDispose]();
        rmSync(dir, { recursive: true, force: true });
      }
    }),
    { numRuns: 30 },
  );
});
