import assert from "node:assert/strict";
import { createReadStream } from "node:fs";
import { mkdir, mkdtemp, readdir, readFile, rm, symlink, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { type TestContext, test } from "node:test";
import { type ErrorReason, isServiceError } from "@unkey/base";
import { type Digest, digestOf } from "../digest.ts";
import { resolveImage, resolveManifest } from "../image-source.ts";
import { defaultImageLimits, type ImageLimits } from "../layer/limits.ts";
import { hostPlatform } from "../platform.ts";
import { fetchLayers } from "../testing/fetch-layers.ts";
import { type TarFixture, tarOf } from "../testing/tar-fixture.ts";
import { assembleImage } from "./assemble-image.ts";
import { exportLayoutArchive } from "./export-archive.ts";
import { importLayoutArchive } from "./import-archive.ts";
import { LayoutImage } from "./layout-image.ts";

const { signal } = new AbortController();

async function temporary(context: TestContext): Promise<string> {
  const directory = await mkdtemp(join(tmpdir(), "oci-layout-"));
  context.after(() => rm(directory, { recursive: true, force: true }));
  return directory;
}

async function assemble(directory: string, text = "hello"): Promise<Digest> {
  const { manifestDigest } = await assembleImage({
    directory,
    files: [
      { path: "d", directory: true },
      { path: "d/hello", content: text, uid: 5 },
      { path: "link", linkTo: "d/hello" },
    ],
    config: { Cmd: ["/d/hello"] },
  });
  return manifestDigest;
}

async function resolve(directory: string, source = new LayoutImage(directory)) {
  const image = await resolveImage(
    source,
    await resolveManifest(source, hostPlatform(), signal),
    hostPlatform(),
    defaultImageLimits,
    signal,
  );
  return { image, layers: await fetchLayers(source, image, directory, { signal }) };
}

async function collect(chunks: AsyncIterable<Uint8Array>): Promise<Buffer> {
  const parts: Uint8Array[] = [];
  for await (const chunk of chunks) parts.push(chunk);
  return Buffer.concat(parts);
}

const fails = (reason: ErrorReason, words: RegExp) => (error: unknown) => {
  assert.ok(isServiceError(error, reason), `${String(error)} is not ${reason}`);
  assert.match(error.message, words);
  return true;
};

test("the same files and config make the same image, other content another", async (context) => {
  const directory = await temporary(context);
  const digests = [];
  for (const [name, text] of [
    ["a", "hello"],
    ["b", "hello"],
    ["c", "other"],
  ] as const)
    digests.push(await assemble(join(directory, name), text));
  assert.equal(digests[0], digests[1]);
  assert.notEqual(digests[0], digests[2]);
});

test("a layout goes through an archive unchanged", async (context) => {
  const directory = await temporary(context);
  const digest = await assemble(join(directory, "from"));
  const archive = await collect(exportLayoutArchive(join(directory, "from")));
  assert.deepEqual(await collect(exportLayoutArchive(join(directory, "from"))), archive);
  await mkdir(join(directory, "to"));
  await writeFile(join(directory, "archive.tar"), archive);
  await importLayoutArchive(
    createReadStream(join(directory, "archive.tar")),
    join(directory, "to"),
    defaultImageLimits,
  );
  const { image, layers } = await resolve(join(directory, "to"));
  assert.equal(image.manifestDigest, digest);
  assert.equal(digestOf(await readFile(layers[0]?.path ?? "")), layers[0]?.digest);
});

async function importing(
  directory: string,
  entries: readonly TarFixture[],
  limits: Partial<ImageLimits> = {},
): Promise<void> {
  const to = join(directory, "to");
  await mkdir(to);
  const archive = tarOf(entries);
  await importLayoutArchive(
    (async function* () {
      yield archive;
    })(),
    to,
    { ...defaultImageLimits, ...limits },
  );
}

const blob = Buffer.from("content");
const blobName = `blobs/sha256/${digestOf(blob).slice(7)}`;
const layoutEntry: TarFixture = { name: "oci-layout", content: '{"imageLayoutVersion":"1.0.0"}' };
const indexEntry: TarFixture = { name: "index.json", content: '{"schemaVersion":2,"manifests":[]}' };

for (const [name, entries, reason, words] of [
  ["without an oci-layout", [indexEntry], "IMAGE_ARCHIVE_INVALID", /no oci-layout/],
  ["without an index", [layoutEntry], "IMAGE_ARCHIVE_INVALID", /no index\.json/],
  [
    "of something else",
    [{ name: "README", content: "x" }],
    "IMAGE_ARCHIVE_INVALID",
    /no oci-layout and no index\.json of an OCI layout, and no manifest\.json/,
  ],
  [
    "with a blob under a wrong digest",
    [layoutEntry, indexEntry, { name: blobName, content: "other" }],
    "IMAGE_DIGEST_MISMATCH",
    /has the digest/,
  ],
  [
    "with a blob twice",
    [layoutEntry, indexEntry, { name: blobName, content: blob }, { name: `./${blobName}`, content: blob }],
    "IMAGE_ARCHIVE_INVALID",
    /twice/,
  ],
  [
    "with a link in the place of a blob",
    [layoutEntry, indexEntry, { name: blobName, type: "symlink", linkName: "/etc/shadow" }],
    "IMAGE_ARCHIVE_INVALID",
    /not a regular file/,
  ],
  [
    "with a hard link in the place of the index",
    [layoutEntry, { name: "index.json", type: "hardlink", linkName: "oci-layout" }],
    "IMAGE_ARCHIVE_INVALID",
    /not a regular file/,
  ],
  [
    "with an oci-layout of megabytes",
    [{ ...layoutEntry, content: Buffer.alloc(5000) }, indexEntry],
    "IMAGE_TOO_LARGE",
    /oci-layout is over/,
  ],
  [
    "of too many entries",
    Array.from({ length: 8193 }, (_, at) => ({ name: `x${at}` })),
    "IMAGE_TOO_LARGE",
    /entries are over/,
  ],
] as [string, TarFixture[], ErrorReason, RegExp][]) {
  test(`hostile: an archive ${name} is refused`, async (context) => {
    await assert.rejects(importing(await temporary(context), entries), fails(reason, words));
  });
}

test("hostile: names outside the layout are passed over, wherever they point", async (context) => {
  const directory = await temporary(context);
  const names = [
    "../escape",
    "/abs",
    "blobs/sha256/../../escape",
    "blobs/md5/00",
    `${blobName}/below`,
    "blobs/sha256/x",
  ];
  await importing(directory, [
    ...names.map((name) => ({ name, content: "x" })),
    layoutEntry,
    indexEntry,
    { name: blobName, content: blob },
  ]);
  assert.deepEqual((await readdir(directory, { recursive: true })).sort(), [
    "to",
    "to/blobs",
    "to/blobs/sha256",
    `to/${blobName}`,
    "to/blobs/sha512",
    "to/index.json",
    "to/oci-layout",
  ]);
});

test("hostile: an archive over the size limit is refused before it is written", async (context) => {
  const entries = [layoutEntry, indexEntry, { name: blobName, content: Buffer.alloc(100_000) }];
  await assert.rejects(
    importing(await temporary(context), entries, { compressedBytes: 1000, layers: 0 }),
    fails("IMAGE_TOO_LARGE", /archive is over/),
  );
});

test("hostile: an archive that is cut short is refused", async (context) => {
  const directory = await temporary(context);
  await mkdir(join(directory, "to"));
  async function* cut(): AsyncGenerator<Buffer> {
    yield tarOf([layoutEntry, indexEntry]).subarray(0, 700);
  }
  await assert.rejects(
    importLayoutArchive(cut(), join(directory, "to"), defaultImageLimits),
    fails("IMAGE_ARCHIVE_INVALID", /middle/),
  );
});

test("a layout of several images names them instead of guessing", async (context) => {
  const directory = await temporary(context);
  await assemble(join(directory, "l"));
  const path = join(directory, "l", "index.json");
  const index = JSON.parse(await readFile(path, "utf8")) as { manifests: { digest: string }[] };
  const named = (name: string, digest = index.manifests[0]?.digest) => ({
    ...index.manifests[0],
    digest,
    annotations: { "org.opencontainers.image.ref.name": name },
  });
  await writeFile(path, JSON.stringify({ ...index, manifests: [named("v1"), named("v2")] }));
  assert.equal((await resolve(join(directory, "l"))).image.manifestDigest, index.manifests[0]?.digest);
  await writeFile(path, JSON.stringify({ ...index, manifests: [named("v1"), named("v2", digestOf("other"))] }));
  await assert.rejects(resolve(join(directory, "l")), fails("IMAGE_ARCHIVE_INVALID", /2 images \(v1, v2\)/));
  await writeFile(path, JSON.stringify({ ...index, manifests: [] }));
  await assert.rejects(resolve(join(directory, "l")), fails("IMAGE_ARCHIVE_INVALID", /no image/));
});

test("hostile: a layout directory is read without following links, and its blobs are checked", async (context) => {
  const directory = await temporary(context);
  const digest = await assemble(join(directory, "l"));
  const path = join(directory, "l", "blobs", "sha256", digest.slice(7));
  const bytes = await readFile(path);
  await writeFile(path, Buffer.concat([bytes.subarray(0, -1), Buffer.from(" ")]));
  await assert.rejects(resolve(join(directory, "l")), fails("IMAGE_DIGEST_MISMATCH", /has the digest/));
  await rm(path);
  await writeFile(join(directory, "outside"), bytes);
  await symlink(join(directory, "outside"), path);
  await assert.rejects(resolve(join(directory, "l")), fails("IMAGE_ARCHIVE_INVALID", /does not hold/));
});
