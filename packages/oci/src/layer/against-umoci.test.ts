import assert from "node:assert/strict";
import { execFileSync } from "node:child_process";
import { createHash } from "node:crypto";
import { existsSync } from "node:fs";
import { mkdir, mkdtemp, rm, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { test } from "node:test";
import * as fc from "fast-check";
import { digestOf } from "../digest.ts";
import { ociConfigType, ociLayerType, ociManifestType } from "../documents.ts";
import { type TarEntry, TarReader } from "../tar/tar-reader.ts";
import { layerOf, type TarFixture, tarOf } from "../testing/tar-fixture.ts";
import { defaultImageLimits } from "./limits.ts";
import { mergeLayers } from "./merge-layers.ts";
import { planTree, treeArchive } from "./tree-archive.ts";

const { signal } = new AbortController();
const needs =
  process.getuid?.() !== 0
    ? "root is needed to unpack with owners"
    : existsSync("/usr/bin/umoci")
      ? false
      : "umoci is not installed";

// Few names, so that layers meet: replace, remove and link each other's entries. Most directories keep to names of their
// own, or nearly every stack would be refused for a name below a file.
const leaf = fc.oneof(
  { arbitrary: fc.constantFrom("c", "e", "f"), weight: 12 },
  { arbitrary: fc.constantFrom("a", "d"), weight: 1 },
);
const path = fc
  .tuple(fc.array(fc.constantFrom("a", "b", "d"), { maxLength: 2 }), leaf)
  .map(([parents, last]) => [...parents, last].join("/"));
const directoryPath = fc
  .array(fc.constantFrom("a", "b", "d"), { minLength: 1, maxLength: 2 })
  .map((parts) => parts.join("/"));
const owner = fc.constantFrom(0, 7, 1000, 70_000);
const any = {
  file: fc.record({
    name: path,
    content: fc.string({ maxLength: 9 }),
    mode: fc.constantFrom(0o600, 0o644, 0o4755),
    uid: owner,
  }),
  directory: fc.record({
    type: fc.constant("directory" as const),
    name: directoryPath,
    mode: fc.constantFrom(0o700, 0o1777),
    gid: owner,
  }),
  symlink: fc.record({
    type: fc.constant("symlink" as const),
    name: path,
    linkName: fc.constantFrom("a", "../b", "/c", "/d/a", "nowhere"),
  }),
  hardlink: fc.record({ type: fc.constant("hardlink" as const), name: path, linkName: path }),
  whiteout: fc.oneof(path, directoryPath).map((at) => ({ name: at.replace(/[^/]+$/, (last) => `.wh.${last}`) })),
  opaque: directoryPath.map((at) => ({ name: `${at}/.wh..wh..opq` })),
  device: fc.record({
    type: fc.constant("char" as const),
    name: path,
    deviceMajor: fc.constant(1),
    deviceMinor: fc.constant(3),
  }),
};
const anyEntry: fc.Arbitrary<TarFixture> = fc.oneof(
  { arbitrary: any.file, weight: 6 },
  { arbitrary: any.directory, weight: 4 },
  { arbitrary: any.symlink, weight: 2 },
  { arbitrary: any.hardlink, weight: 2 },
  { arbitrary: any.whiteout, weight: 2 },
  { arbitrary: any.opaque, weight: 1 },
  { arbitrary: any.device, weight: 1 },
);
/** There from the start, so that links and whiteouts often find something. */
const base: readonly TarFixture[] = [
  { name: "a/a", content: "aa" },
  { name: "b/b", content: "bb" },
  { name: "c", content: "c" },
  { name: "d", type: "directory" },
  { name: "d/c", type: "hardlink", linkName: "c" },
];
const anyLayers = fc
  .array(fc.array(anyEntry, { minLength: 1, maxLength: 8 }), { minLength: 1, maxLength: 4 })
  .map((layers) => [base, ...layers]);

/** What an entry is, without what the two unpackers may differ in: times of directories and of what nobody described. */
async function describe(reader: TarReader, entry: TarEntry): Promise<string> {
  const hash = createHash("sha256");
  for await (const chunk of reader.content()) hash.update(chunk);
  const { type, mode, uid, gid, linkName, deviceMajor, deviceMinor, mtimeNs } = entry;
  const content = type === "file" ? `${mtimeNs} ${hash.digest("hex")}` : linkName;
  return [type, type === "symlink" ? "" : mode.toString(8), uid, gid, deviceMajor, deviceMinor, content].join(" ");
}

/** Every path with what it is; all names of a hard-linked file are told alike, whichever of them came first. */
async function listing(archive: AsyncIterable<Uint8Array>): Promise<Record<string, string>> {
  const reader = new TarReader(archive);
  const inside = (at: string): string => at.replace(/^rootfs\/?/, "").replace(/\/$/, "");
  const found = new Map<string, string>();
  const names = new Map<string, string[]>();
  for (let entry = await reader.next(); entry !== undefined; entry = await reader.next()) {
    const at = inside(entry.name);
    if (at === "") continue;
    const first = entry.type === "hardlink" ? inside(entry.linkName) : at;
    found.set(at, found.get(first) ?? (await describe(reader, entry)));
    names.set(first, [...(names.get(first) ?? []), at].sort());
  }
  const told: Record<string, string> = {};
  for (const group of names.values()) {
    for (const at of group) {
      const what = found.get(at) ?? "";
      // GNU tar, which lists the other side, archives each name of a device by itself.
      told[at] = what.startsWith("char") ? what : `${what} [${group.join(" ")}]`;
    }
  }
  return told;
}

async function ours(directory: string, layers: readonly (readonly TarFixture[])[]): Promise<Record<string, string>> {
  const blobs = await Promise.all(layers.map((layer, at) => layerOf(join(directory, `layer-${at}`), tarOf(layer))));
  const tree = await mergeLayers(blobs, { limits: defaultImageLimits, signal });
  const plan = planTree(tree, blobs.length, defaultImageLimits);
  return listing(treeArchive(plan, blobs, { rootName: "rootfs", limits: defaultImageLimits, signal }));
}

async function theirs(directory: string, layers: readonly (readonly TarFixture[])[]): Promise<Record<string, string>> {
  const layout = join(directory, "layout");
  await mkdir(join(layout, "blobs/sha256"), { recursive: true });
  const store = async (mediaType: string, bytes: Buffer) => {
    const digest = digestOf(bytes);
    await writeFile(join(layout, "blobs/sha256", digest.slice(7)), bytes);
    return { mediaType, digest, size: bytes.length };
  };
  const stored = await Promise.all(layers.map((layer) => store(ociLayerType, tarOf(layer))));
  const config = {
    os: "linux",
    architecture: "amd64",
    config: {},
    rootfs: { type: "layers", diff_ids: stored.map(({ digest }) => digest) },
  };
  const manifest = {
    schemaVersion: 2,
    mediaType: ociManifestType,
    config: await store(ociConfigType, Buffer.from(JSON.stringify(config))),
    layers: stored,
  };
  const descriptor = await store(ociManifestType, Buffer.from(JSON.stringify(manifest)));
  await writeFile(join(layout, "oci-layout"), '{"imageLayoutVersion":"1.0.0"}');
  const named = { ...descriptor, annotations: { "org.opencontainers.image.ref.name": "x" } };
  await writeFile(join(layout, "index.json"), JSON.stringify({ schemaVersion: 2, manifests: [named] }));
  const bundle = join(directory, "bundle");
  execFileSync("umoci", ["unpack", "--image", `${layout}:x`, bundle], { stdio: "pipe" });
  const archive = execFileSync("tar", ["-C", bundle, "--format=pax", "--numeric-owner", "-cf", "-", "rootfs"], {
    maxBuffer: 1 << 24,
  });
  return listing(
    (async function* () {
      yield archive;
    })(),
  );
}

// The same stacks each time; UNKEY_TEST_RUNS=1000 looks for new ones.
test("random layers give the tree that umoci unpacks", { skip: needs }, async () => {
  let compared = 0;
  await fc.assert(
    fc.asyncProperty(anyLayers, async (layers) => {
      const directory = await mkdtemp(join(tmpdir(), "umoci-"));
      try {
        const tree = await ours(directory, layers).catch((error: Error) => error);
        const reference = await theirs(directory, layers).catch((error: Error) => error);
        if (tree instanceof Error !== reference instanceof Error) assert.deepEqual(tree, reference);
        if (tree instanceof Error) return;
        compared++;
        assert.deepEqual(tree, reference);
      } finally {
        await rm(directory, { recursive: true, force: true });
      }
    }),
    {
      numRuns: Number(process.env["UNKEY_TEST_RUNS"] ?? 30),
      ...(process.env["UNKEY_TEST_RUNS"] === undefined ? { seed: 1 } : {}),
    },
  );
  assert.ok(compared > 0);
});
