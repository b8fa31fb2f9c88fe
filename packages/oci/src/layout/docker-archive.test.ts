import assert from "node:assert/strict";
import { execFileSync } from "node:child_process";
import { existsSync } from "node:fs";
import { mkdir, mkdtemp, readdir, readFile, rm } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { type TestContext, test } from "node:test";
import { gzipSync, zstdCompressSync } from "node:zlib";
import { type ErrorReason, isServiceError } from "@unkey/base";
import { digestOf } from "../digest.ts";
import { resolveImage, resolveManifest } from "../image-source.ts";
import { defaultImageLimits, type ImageLimits } from "../layer/limits.ts";
import { hostPlatform } from "../platform.ts";
import { type TarFixture, tarOf } from "../testing/tar-fixture.ts";
import { assembleImage } from "./assemble-image.ts";
import { importLayoutArchive } from "./import-archive.ts";
import { LayoutImage } from "./layout-image.ts";

const { signal } = new AbortController();

async function temporary(context: TestContext): Promise<string> {
  const directory = await mkdtemp(join(tmpdir(), "oci-docker-archive-"));
  context.after(() => rm(directory, { recursive: true, force: true }));
  return directory;
}

/** Imports an archive in pieces and reads its image to the last layer's last byte. */
async function importing(directory: string, archive: Buffer, limits: Partial<ImageLimits> = {}) {
  const to = await mkdtemp(join(directory, "to-"));
  async function* pieces(): AsyncGenerator<Buffer> {
    for (let at = 0; at < archive.length; at += 1000) yield archive.subarray(at, at + 1000);
  }
  await importLayoutArchive(pieces(), to, { ...defaultImageLimits, ...limits });
  assert.deepEqual((await readdir(to)).sort(), ["blobs", "index.json", "oci-layout"]);
  const source = new LayoutImage(to);
  const manifest = await resolveManifest(source, hostPlatform(), signal);
  const image = await resolveImage(source, manifest, hostPlatform(), defaultImageLimits, signal);
  for (const { descriptor } of image.layers) {
    assert.equal(await source.canRead(descriptor, signal), true);
    for await (const _ of source.openLayer(descriptor, { signal }));
  }
  return image;
}

const layers = ["one", "two"].map((text) => tarOf([{ name: text, content: text.repeat(1000) }]));
const [one = Buffer.alloc(0), two = Buffer.alloc(0)] = layers;
const hex = (bytes: Buffer): string => digestOf(bytes).slice("sha256:".length);
const configOf = (diffs: readonly Buffer[], cmd = "/x"): Buffer =>
  Buffer.from(
    JSON.stringify({
      os: "linux",
      architecture: hostPlatform().architecture,
      config: { Cmd: [cmd] },
      rootfs: { type: "layers", diff_ids: diffs.map((bytes) => digestOf(bytes)) },
    }),
  );
const config = configOf(layers);
const configName = `${hex(config)}.json`;
const manifestOf = (...images: object[]): TarFixture => ({ name: "manifest.json", content: JSON.stringify(images) });
const saved = { Config: configName, RepoTags: ["app:latest"], Layers: ["1/layer.tar", "2/layer.tar"] };

/** As Docker before version 25 wrote it. */
const legacy: readonly TarFixture[] = [
  { name: "1/", type: "directory" },
  { name: "1/VERSION", content: "1.0" },
  { name: "1/json", content: "{}" },
  { name: "1/layer.tar", content: one },
  { name: "2/layer.tar", content: two },
  { name: configName, content: config },
  manifestOf(saved),
  { name: "repositories", content: "{}" },
];

test("an archive of docker save becomes a layout: the same image for the same files, in any order and compression", async (context) => {
  const directory = await temporary(context);
  const archive = tarOf(legacy);
  const image = await importing(directory, archive);
  assert.deepEqual(image.config.argv, ["/x"]);
  assert.deepEqual(
    image.layers.map(({ descriptor }) => [descriptor.digest, descriptor.mediaType.endsWith(".tar")]),
    layers.map((bytes) => [digestOf(bytes), true]),
  );
  for (const other of [tarOf(legacy.toReversed()), gzipSync(archive), zstdCompressSync(archive)]) {
    assert.equal((await importing(directory, other)).manifestDigest, image.manifestDigest);
  }
});

test("layers may be links to other members, shared, or compressed", async (context) => {
  const directory = await temporary(context);
  const image = await importing(
    directory,
    tarOf([
      { name: `${hex(one)}.tar`, content: one },
      { name: "1/layer.tar", type: "symlink", linkName: `../${hex(one)}.tar` },
      { name: "2/layer.tar", type: "symlink", linkName: "../1/layer.tar" },
      { name: "3.tar.gz", content: gzipSync(two) },
      { name: configName, content: configOf([one, one, two]) },
      manifestOf({ Config: "./config.json", Layers: ["1/layer.tar", "2/layer.tar", "3.tar.gz"] }),
      { name: "config.json", content: configOf([one, one, two]) },
    ]),
  );
  assert.deepEqual(
    image.layers.map(({ descriptor }) => descriptor.digest),
    [digestOf(one), digestOf(one), digestOf(gzipSync(two))],
  );
  assert.match(image.layers[2]?.descriptor.mediaType ?? "", /\+gzip$/);
});

test("an archive that is an OCI layout as well is read as one", async (context) => {
  const directory = await temporary(context);
  const layout = join(directory, "layout");
  const { manifestDigest } = await assembleImage({
    directory: layout,
    files: [{ path: "x", content: "y" }],
    config: { Cmd: ["/x"] },
  });
  const names = [
    "oci-layout",
    "index.json",
    ...(await readdir(join(layout, "blobs/sha256"))).map((name) => `blobs/sha256/${name}`),
  ];
  const entries = await Promise.all(names.map(async (name) => ({ name, content: await readFile(join(layout, name)) })));
  const also = manifestOf({ Config: names[2], RepoTags: null, Layers: [names[3]] });
  assert.equal((await importing(directory, tarOf([...entries, also]))).manifestDigest, manifestDigest);
  // The same content under Docker's names alone.
  const index = JSON.parse(await readFile(join(layout, "index.json"), "utf8")) as { manifests: { digest: string }[] };
  const manifest = JSON.parse(
    await readFile(join(layout, "blobs/sha256", (index.manifests[0]?.digest ?? "").slice(7)), "utf8"),
  ) as { config: { digest: string }; layers: { digest: string }[] };
  const blob = ({ digest }: { digest: string }): string => `blobs/sha256/${digest.slice(7)}`;
  const docker = manifestOf({ Config: blob(manifest.config), Layers: manifest.layers.map(blob) });
  const image = await importing(directory, tarOf([...entries.slice(2), docker]));
  assert.deepEqual(image.config.argv, ["/x"]);
});

test("several names of one image are one image", async (context) => {
  const directory = await temporary(context);
  const twice = manifestOf(saved, { ...saved, RepoTags: ["app:v1"] });
  assert.equal(
    (await importing(directory, tarOf([...legacy.filter(({ name }) => name !== "manifest.json"), twice]))).layers
      .length,
    2,
  );
});

for (const tool of ["skopeo", "buildah"]) {
  test(`an archive that ${tool} wrote`, {
    skip: !existsSync(`/usr/bin/${tool}`) && `${tool} is not installed`,
  }, async (context) => {
    const directory = await temporary(context);
    const layout = join(directory, "layout");
    await assembleImage({ directory: layout, files: [{ path: "x", content: "y" }], config: { Cmd: ["/x"] } });
    const archive = join(directory, `${tool}.tar`);
    if (tool === "skopeo") {
      execFileSync("skopeo", ["copy", "--insecure-policy", `oci:${layout}`, `docker-archive:${archive}:app:v1`], {
        stdio: "pipe",
      });
    } else {
      const storage = [
        "--root",
        join(directory, "root"),
        "--runroot",
        join(directory, "run"),
        "--storage-driver",
        "vfs",
      ];
      const buildah = (...words: string[]) =>
        execFileSync("buildah", [...storage, ...words], { stdio: "pipe" })
          .toString()
          .trim();
      const container = buildah("from", "scratch");
      buildah("copy", container, join(layout, "index.json"), "/x");
      buildah("config", "--cmd", '["/x"]', container);
      buildah("commit", container, `docker-archive:${archive}:app:v1`);
    }
    assert.deepEqual((await importing(directory, await readFile(archive))).config.argv, ["/x"]);
  });
}

const without = (...names: string[]): TarFixture[] => legacy.filter(({ name }) => !names.includes(name));
const other = configOf(layers, "/other");
for (const [name, entries, reason, words] of [
  [
    "without its config",
    without(configName),
    "IMAGE_ARCHIVE_INVALID",
    /no "[0-9a-f]{64}\.json", which its manifest\.json names/,
  ],
  ["without a layer", without("2/layer.tar"), "IMAGE_ARCHIVE_INVALID", /no "2\/layer\.tar"/],
  [
    "with another config than its name says",
    [...without(configName), { name: configName, content: other }],
    "IMAGE_DIGEST_MISMATCH",
    /has the digest/,
  ],
  [
    "of several images",
    [
      ...without("manifest.json"),
      { name: "other.json", content: other },
      manifestOf(saved, { ...saved, Config: "other.json", RepoTags: ["other:v2"] }),
    ],
    "IMAGE_ARCHIVE_INVALID",
    /2 images \(app:latest, other:v2\)/,
  ],
  ["of no image", [...without("manifest.json"), manifestOf()], "IMAGE_ARCHIVE_INVALID", /no image/],
  [
    "whose manifest is no list",
    [...without("manifest.json"), { name: "manifest.json", content: "{}" }],
    "IMAGE_ARCHIVE_INVALID",
    /not an array/,
  ],
  ["whose manifest is there twice", [...legacy, manifestOf(saved)], "IMAGE_ARCHIVE_INVALID", /twice/],
  [
    "whose manifest is a link",
    [...without("manifest.json"), { name: "manifest.json", type: "symlink", linkName: "/etc/passwd" }],
    "IMAGE_ARCHIVE_INVALID",
    /not a regular file/,
  ],
  [
    "whose manifest is megabytes",
    [...without("manifest.json"), { name: "manifest.json", content: Buffer.alloc(5 << 20, " ") }],
    "IMAGE_TOO_LARGE",
    /manifest\.json is over/,
  ],
  [
    "whose layer is a link out of it",
    [...without("2/layer.tar"), { name: "2/layer.tar", type: "symlink", linkName: "../../../etc/passwd" }],
    "IMAGE_ARCHIVE_INVALID",
    /leads out of the archive/,
  ],
  [
    "whose layer is an absolute link",
    [...without("2/layer.tar"), { name: "2/layer.tar", type: "symlink", linkName: "/etc/passwd" }],
    "IMAGE_ARCHIVE_INVALID",
    /no "etc\/passwd"/,
  ],
  [
    "whose layer is a link to itself",
    [...without("2/layer.tar"), { name: "2/layer.tar", type: "symlink", linkName: "layer.tar" }],
    "IMAGE_ARCHIVE_INVALID",
    /circle/,
  ],
  [
    "whose layer is a hard link",
    [...without("2/layer.tar"), { name: "2/layer.tar", type: "hardlink", linkName: "1/layer.tar" }],
    "IMAGE_ARCHIVE_INVALID",
    /no "2\/layer\.tar"/,
  ],
  [
    "whose manifest names a file of this host",
    [...without("manifest.json"), manifestOf({ ...saved, Layers: ["../../../../etc/passwd"] })],
    "IMAGE_ARCHIVE_INVALID",
    /leads out/,
  ],
  [
    "whose config is another file of ours",
    [...without("manifest.json"), manifestOf({ ...saved, Config: "pending/0" })],
    "IMAGE_ARCHIVE_INVALID",
    /no "pending\/0"/,
  ],
  [
    "with more layers than the limit",
    [...without("manifest.json"), manifestOf({ ...saved, Layers: Array.from({ length: 257 }, () => "1/layer.tar") })],
    "IMAGE_TOO_LARGE",
    /layers are over/,
  ],
] as [string, TarFixture[], ErrorReason, RegExp][]) {
  test(`hostile: a docker archive ${name} is refused`, async (context) => {
    await assert.rejects(importing(await temporary(context), tarOf(entries)), (error) => {
      assert.ok(isServiceError(error, reason), `${String(error)} is not ${reason}`);
      assert.match(error.message, words);
      return true;
    });
  });
}

test("hostile: a compressed archive that is a bomb or is damaged", async (context) => {
  const directory = await temporary(context);
  const bomb = zstdCompressSync(tarOf([{ name: "x.tar", content: Buffer.alloc(80 << 20) }]));
  const refused = (reason: ErrorReason) => (error: unknown) => isServiceError(error, reason);
  await assert.rejects(importing(directory, bomb), refused("IMAGE_TOO_LARGE"));
  await assert.rejects(
    importing(directory, gzipSync(tarOf(legacy)).subarray(0, 500)),
    refused("IMAGE_ARCHIVE_INVALID"),
  );
  await mkdir(join(directory, "empty"));
  await assert.rejects(importing(directory, Buffer.alloc(0)), refused("IMAGE_ARCHIVE_INVALID"));
});
