import assert from "node:assert/strict";
import { mkdtemp, rm } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { test } from "node:test";
import * as fc from "fast-check";
import { checkImage, mountObstacle, readImage } from "./testing/mounted.ts";
import { directoryOf, expectedPaths, inDevices, seenPaths, writeImage } from "./testing/test-tree.ts";
import type { ErofsDirectory, ErofsMetadata, ErofsNode, ErofsRange } from "./tree.ts";

/* Random trees, as the kernel shows their images. The same ones each time; UNKEY_TEST_RUNS=1000 looks for new ones. */

const edge = fc.constantFrom(0, 1, 31, 32, 33, 100, 4000, 4031, 4032, 4033, 4063, 4064, 4065, 4095, 4096, 4097);
const anySize = fc.oneof(
  edge,
  fc.nat(20_000),
  edge.map((size) => size + 8192),
);
const anyName = fc.oneof(
  { arbitrary: fc.string({ minLength: 1, maxLength: 12 }), weight: 4 },
  { arbitrary: fc.integer({ min: 0, max: 30 }).map((n) => `n${n}`), weight: 4 },
  {
    arbitrary: fc.integer({ min: 200, max: 255 }).chain((n) => fc.constantFrom("x", "\xff").map((c) => c.repeat(n))),
    weight: 1,
  },
  {
    arbitrary: fc.uint8Array({ minLength: 1, maxLength: 255 }).map((bytes) => Buffer.from(bytes).toString("latin1")),
    weight: 1,
  },
);
const anyXattrs: fc.Arbitrary<ReadonlyMap<string, Buffer>> = fc.oneof(
  { arbitrary: fc.constant(new Map<string, Buffer>()), weight: 6 },
  {
    arbitrary: fc
      .array(
        fc.tuple(
          fc.constantFrom("user.a", "user.b", "user.long name", "trusted.t", "security.s", "security.selinux"),
          fc.oneof(
            fc.constant(Buffer.from("the same everywhere, long enough to share")),
            fc.uint8Array({ maxLength: 40 }).map((bytes) => Buffer.from(bytes)),
            fc.constantFrom(3000, 4050, 9000).map((length) => Buffer.alloc(length, "x")),
          ),
        ),
        { maxLength: 4 },
      )
      .map((entries) => new Map(entries)),
    weight: 2,
  },
);
const anyTime = fc.oneof(
  { arbitrary: fc.constant(1_700_000_000_000_000_000n), weight: 3 },
  { arbitrary: fc.bigInt({ min: 0n, max: 4_294_967_296_000_000_000n }), weight: 1 },
);
const anyOwner = fc.constantFrom(0, 0, 0, 1000, 65_535, 65_536, 4_000_000_000);
const anyMetadata: fc.Arbitrary<ErofsMetadata> = fc.record({
  mode: fc.nat(0o7777),
  uid: anyOwner,
  gid: anyOwner,
  mtimeNs: anyTime,
  xattrs: anyXattrs,
});
/** Ranges from lengths of holes and data in turn. */
const anySparse = fc
  .tuple(
    fc.array(fc.oneof(fc.nat(5000), fc.nat(40_000), fc.constantFrom(0, 4096, 8192)), { maxLength: 12 }),
    fc.nat(70_000),
  )
  .map(([lengths, rest]) => {
    const data: ErofsRange[] = [];
    let offset = 0;
    for (const [index, length] of lengths.entries()) {
      if (index % 2 === 1) data.push({ offset, length });
      offset += length;
    }
    return { sizeBytes: offset + rest, data };
  });
const anyLeaf: fc.Arbitrary<ErofsNode> = fc.oneof(
  {
    arbitrary: fc.record({ kind: fc.constant("file" as const), metadata: anyMetadata, sizeBytes: anySize }),
    weight: 8,
  },
  {
    arbitrary: fc
      .tuple(anyMetadata, anySparse)
      .map(([metadata, sparse]) => ({ kind: "file" as const, metadata, ...sparse })),
    weight: 2,
  },
  {
    arbitrary: fc.record({
      kind: fc.constant("symlink" as const),
      metadata: anyMetadata.map((metadata) => ({
        ...metadata,
        mode: 0o777,
        // The kernel refuses user attributes of what is neither file nor directory.
        xattrs: new Map([...metadata.xattrs].filter(([name]) => !name.startsWith("user."))),
      })),
      target: fc.oneof(
        fc.string({ minLength: 1, maxLength: 30 }),
        fc.integer({ min: 1, max: 4095 }).map((n) => "t".repeat(n)),
      ),
    }),
    weight: 2,
  },
  {
    arbitrary: fc.record({
      kind: fc.constantFrom("char" as const, "block" as const, "fifo" as const),
      metadata: anyMetadata.map((metadata) => ({ ...metadata, xattrs: new Map() })),
      deviceMajor: fc.nat(4095),
      deviceMinor: fc.nat(0xf_ffff),
    }),
    weight: 1,
  },
);
const anyTree: fc.Arbitrary<ErofsDirectory> = fc
  .tuple(
    fc.array(
      fc.record({
        // Which of the directories made so far it is put into.
        parent: fc.nat(),
        name: anyName,
        node: fc.oneof({ arbitrary: anyLeaf, weight: 3 }, { arbitrary: anyMetadata, weight: 1 }),
        // Now and then a second name, elsewhere.
        again: fc.option(fc.record({ parent: fc.nat(), name: anyName }), { freq: 8 }),
      }),
      { maxLength: 120, size: "max" },
    ),
    anyMetadata,
  )
  .map(([entries, metadata]) => {
    const root = { ...directoryOf({}), metadata };
    const directories: ErofsDirectory[] = [root];
    const put = (at: { parent: number; name: string }, node: ErofsNode): boolean => {
      const name = at.name.replace(/[\0/]|[^\0-\xff]/g, "_");
      const children = directories[at.parent % directories.length]?.children as Map<string, { node: ErofsNode }>;
      if (name === "." || name === ".." || name === "" || children.has(name)) return false;
      children.set(name, { node });
      return true;
    };
    for (const { parent, name, node, again } of entries) {
      if (!("kind" in node)) {
        const directory: ErofsDirectory = { kind: "directory", metadata: node, children: new Map() };
        if (put({ parent, name }, directory)) directories.push(directory);
        continue;
      }
      put({ parent, name }, node);
      if (again !== null) put(again, node);
    }
    return root;
  });

test("random trees are what the kernel shows of their images", {
  skip: mountObstacle(),
  timeout: 600_000,
}, async () => {
  const directory = await mkdtemp(join(tmpdir(), "erofs-"));
  const runs = process.env["UNKEY_TEST_RUNS"];
  let nodes = 0;
  try {
    await fc.assert(
      fc.asyncProperty(
        anyTree,
        fc.array(fc.integer({ min: 1, max: 9000 }), { minLength: 1, maxLength: 4 }),
        fc.integer({ min: 1, max: 3 }),
        async (root, chunkBytes, deviceCount) => {
          const { imagePath, digest } = await writeImage(directory, root, { chunkBytes });
          assert.equal((await writeImage(directory, root, { name: "again" })).digest, digest);
          checkImage(imagePath);
          const expected = expectedPaths(root);
          nodes += Object.keys(expected).length;
          assert.deepEqual(seenPaths(readImage(imagePath)), expected);

          const placed = inDevices(root, deviceCount);
          const options = { name: "in-devices", chunkBytes, devices: placed.devices };
          const { imagePath: at, devicePaths } = await writeImage(directory, placed.root, options);
          checkImage(at, devicePaths);
          assert.deepEqual(seenPaths(readImage(at, devicePaths)), expected);
        },
      ),
      { numRuns: Number(runs ?? 25), ...(runs === undefined ? { seed: 1 } : {}) },
    );
  } finally {
    await rm(directory, { recursive: true, force: true });
  }
  assert.ok(nodes > 100, `${nodes} nodes were compared`);
});
