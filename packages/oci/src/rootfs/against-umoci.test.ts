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
import {
  attachments,
  checkErofs,
  entriesIn,
  needsMount,
  type Seen,
  seenIn,
  withImage,
} from "../testing/built-image.ts";
import { anyLayers, archiveOf, type TestEntry } from "../testing/random-layers.ts";

const needs = existsSync("/usr/bin/umoci") ? needsMount() : "umoci is not installed";

/** What a path is, but for modes of links and times of directories: umoci lets unpacking change those. */
function describe({ entry, content }: Seen): string {
  const { type, mode, uid, gid, linkName, deviceMajor, deviceMinor, mtimeNs, xattrs } = entry;
  const attributes = [...xattrs].map(([name, value]) => `${name}=${value.toString("hex")}`).sort();
  const what = type === "file" ? createHash("sha256").update(content).digest("hex") : linkName;
  return [
    type,
    type === "symlink" ? "" : mode.toString(8),
    uid,
    gid,
    deviceMajor,
    deviceMinor,
    type === "directory" ? "" : mtimeNs,
    ...attributes,
    what,
  ].join(" ");
}

/** Every path with what it is; all names of a hard-linked file are told alike, whichever of them came first. */
function listing(entries: ReadonlyMap<string, Seen>): Record<string, string> {
  const found = new Map<string, string>();
  const names = new Map<string, string[]>();
  for (const [at, seen] of entries) {
    if (at === "") continue;
    const first = seen.entry.type === "hardlink" ? seen.entry.linkName.replace(/^(\.|rootfs)\//, "") : at;
    found.set(at, found.get(first) ?? describe(seen));
    names.set(first, [...(names.get(first) ?? []), at].sort());
  }
  const told: Record<string, string> = {};
  for (const group of names.values()) {
    for (const at of group) {
      const what = found.get(at) ?? "";
      // GNU tar archives each name of a device by itself.
      told[at] = what.startsWith("char") ? what : `${what} [${group.join(" ")}]`;
    }
  }
  return told;
}

async function ours(
  layers: readonly (readonly TestEntry[])[],
  attach: (layer: number) => boolean,
): Promise<Record<string, string>> {
  return withImage(
    layers.map((layer) => ({ archive: archiveOf(layer) })),
    { attach },
    async ({ imagePath, devicePaths }) => {
      checkErofs(imagePath, devicePaths);
      return listing(await seenIn(imagePath, { devicePaths }));
    },
  );
}

async function theirs(directory: string, layers: readonly (readonly TestEntry[])[]): Promise<Record<string, string>> {
  const layout = join(directory, "layout");
  await mkdir(join(layout, "blobs/sha256"), { recursive: true });
  const store = async (mediaType: string, bytes: Buffer) => {
    const digest = digestOf(bytes);
    await writeFile(join(layout, "blobs/sha256", digest.slice(7)), bytes);
    return { mediaType, digest, size: bytes.length };
  };
  const stored = await Promise.all(layers.map((layer) => store(ociLayerType, archiveOf(layer))));
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
  const archive = execFileSync(
    "tar",
    [
      "-C",
      bundle,
      "--format=pax",
      "--sort=name",
      "--numeric-owner",
      "--xattrs",
      "--xattrs-include=*",
      "-cf",
      "-",
      "rootfs",
    ],
    {
      maxBuffer: 1 << 24,
    },
  );
  return listing(await entriesIn(archive, "rootfs"));
}

// The same stacks each time; UNKEY_TEST_RUNS=1000 looks for new ones. A failure prints its seed.
test("random layers give, in a mounted image, the tree that umoci unpacks", { skip: needs }, async (context) => {
  let compared = 0;
  await fc.assert(
    fc.asyncProperty(anyLayers, async (layers) => {
      const directory = await mkdtemp(join(tmpdir(), "umoci-"));
      try {
        const reference = await theirs(directory, layers).catch((error: Error) => error);
        for (const [, attach] of attachments) {
          const tree = await ours(layers, attach).catch((error: Error) => error);
          if (tree instanceof Error !== reference instanceof Error) assert.deepEqual(tree, reference);
          if (tree instanceof Error) return;
          compared++;
          assert.deepEqual(tree, reference);
        }
      } finally {
        await rm(directory, { recursive: true, force: true });
      }
    }),
    {
      numRuns: Number(process.env["UNKEY_TEST_RUNS"] ?? 30),
      ...(process.env["UNKEY_TEST_RUNS"] === undefined ? { seed: 1 } : {}),
    },
  );
  context.diagnostic(`${compared} trees compared; the others were refused by both`);
  assert.ok(compared > 0);
});
