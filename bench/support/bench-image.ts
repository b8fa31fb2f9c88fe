import { execFileSync } from "node:child_process";
import { createHash, randomBytes } from "node:crypto";
import { createReadStream, createWriteStream, existsSync } from "node:fs";
import { copyFile, mkdir, mkdtemp, open, readFile, rename, rm, stat, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { Readable, Transform } from "node:stream";
import { pipeline } from "node:stream/promises";
import { createGzip, gzipSync } from "node:zlib";
import { pushLayout } from "@unkey/oci/testing";

/** A gzip layer in a file, and its archive's digest. */
interface Layer {
  readonly path: string;
  readonly diffId: string;
  readonly archiveBytes: number;
}

/** Made once: minutes of downloading and compressing. */
const cache = join(import.meta.dirname, "../../node_modules/.cache/unkey-bench");
const debianVersion = "debian-1";
const hugeVersion = "huge-1";
const minFiles = 40_000;
const minBytes = 500_000_000;

/** Debian packages in three layers. Throws when it is smaller than the bench promises. */
export async function debianLayers(): Promise<Layer[]> {
  return made(debianVersion, async (directory) => {
    execFileSync("sh", [join(import.meta.dirname, "debian-layers.sh"), directory], { stdio: ["ignore", 2, 2] });
    const listing = ["0.tar", "1.tar", "2.tar"].map((name) =>
      execFileSync("tar", ["-tvf", join(directory, name)], { encoding: "utf8", maxBuffer: 1 << 28 }),
    );
    const files = new Map(
      listing.flatMap((text) =>
        text
          .split("\n")
          .map((line) => /^-\S+ \S+\s+(\d+) \S+ \S+ (.+)$/.exec(line))
          .filter((match) => match !== null)
          .map((match) => [match[2], Number(match[1])] as const),
      ),
    );
    const bytes = [...files.values()].reduce((sum, size) => sum + size, 0);
    console.error(`the image has ${files.size} files, ${Math.round(bytes / 1e6)} MB`);
    if (files.size < minFiles || bytes < minBytes) throw new Error("the image is smaller than promised");
    return ["0.tar", "1.tar", "2.tar"];
  });
}

/** Four layers of 1 GiB each, of which a quarter does not compress. */
export async function hugeLayers(): Promise<Layer[]> {
  return made(hugeVersion, async (directory) => {
    const names: string[] = [];
    for (let layer = 0; layer < 4; layer++) {
      names.push(`${layer}.tar`);
      await pipeline(Readable.from(hugeArchive(layer)), createWriteStream(join(directory, `${layer}.tar`)));
    }
    return names;
  });
}

function* hugeArchive(layer: number): Generator<Buffer> {
  const sizeBytes = 4 << 20;
  const text = Buffer.alloc(3 << 20, "the quick brown fox jumps over the lazy dog; ");
  for (let file = 0; file < 256; file++) {
    yield tarHeader(`huge/${layer}/${file}`, sizeBytes);
    yield randomBytes(1 << 20);
    yield text;
  }
  yield Buffer.alloc(1024);
}

/** What a developer changes: 5 MB of it in 100 files, another content with each `version`. */
export function topLayer(version: number): { archive: Buffer; compressed: Buffer } {
  const files = Array.from({ length: 100 }, (_, i) => {
    const half = createHash("shake256", { outputLength: 25_000 }).update(`${version}/${i}`).digest();
    const content = Buffer.concat([half, Buffer.alloc(25_000, `file ${i} of version ${version}\n`)]);
    return Buffer.concat([tarHeader(`srv/app/${i}`, content.length), content, Buffer.alloc(-content.length & 511)]);
  });
  const archive = Buffer.concat([...files, Buffer.alloc(1024)]);
  return { archive, compressed: gzipSync(archive) };
}

/**
 * Pushes layers with a top layer as one image. Each `salt` gives every lower layer another digest and the same content, by the time
 * in its gzip header: an image that no cache has seen.
 */
export async function pushImage(
  layers: readonly Layer[],
  options: { host: string; tag: string; salt: number; topVersion: number },
): Promise<string> {
  const directory = await mkdtemp(join(tmpdir(), "unkey-bench-layout-"));
  try {
    await mkdir(join(directory, "blobs/sha256"), { recursive: true });
    const blobs = [];
    for (const layer of layers) blobs.push({ ...(await saltedBlob(directory, layer.path, options.salt)) });
    const top = topLayer(options.topVersion);
    blobs.push(await storeBlob(directory, top.compressed));
    const diffIds = [...layers.map(({ diffId }) => diffId), `sha256:${sha256(top.archive)}`];
    const architecture = process.arch === "arm64" ? "arm64" : "amd64";
    const config = { os: "linux", architecture, config: {}, rootfs: { type: "layers", diff_ids: diffIds } };
    const types = "application/vnd.oci.image";
    const manifest = {
      schemaVersion: 2,
      mediaType: `${types}.manifest.v1+json`,
      config: {
        mediaType: `${types}.config.v1+json`,
        ...(await storeBlob(directory, Buffer.from(JSON.stringify(config)))),
      },
      layers: blobs.map((blob) => ({ mediaType: `${types}.layer.v1.tar+gzip`, ...blob })),
    };
    const descriptor = {
      mediaType: manifest.mediaType,
      ...(await storeBlob(directory, Buffer.from(JSON.stringify(manifest)))),
    };
    await writeFile(join(directory, "oci-layout"), '{"imageLayoutVersion":"1.0.0"}');
    await writeFile(join(directory, "index.json"), JSON.stringify({ schemaVersion: 2, manifests: [descriptor] }));
    const { host, tag } = options;
    await pushLayout({ layout: directory, host, repository: "bench", tag });
    return `${host}/bench:${tag}`;
  } finally {
    await rm(directory, { recursive: true, force: true });
  }
}

/** Layers of archives that `make` puts into a directory and names; kept under `version`. */
async function made(version: string, make: (directory: string) => Promise<readonly string[]>): Promise<Layer[]> {
  const directory = join(cache, version);
  const factsFile = join(directory, "layers.json");
  if (!existsSync(factsFile)) {
    const making = `${directory}.making`;
    await rm(making, { recursive: true, force: true });
    await mkdir(making, { recursive: true });
    const facts: Omit<Layer, "path">[] = [];
    for (const [index, name] of (await make(making)).entries()) {
      const hash = createHash("sha256");
      let archiveBytes = 0;
      const measure = new Transform({
        transform(chunk: Buffer, _, done) {
          hash.update(chunk);
          archiveBytes += chunk.length;
          done(null, chunk);
        },
      });
      const archive = join(making, name);
      await pipeline(createReadStream(archive), measure, createGzip(), createWriteStream(join(making, `${index}.gz`)));
      await rm(archive);
      facts.push({ diffId: `sha256:${hash.digest("hex")}`, archiveBytes });
    }
    await writeFile(join(making, "layers.json"), JSON.stringify(facts));
    await rm(directory, { recursive: true, force: true });
    await rename(making, directory);
  }
  const facts = JSON.parse(await readFile(factsFile, "utf8")) as Omit<Layer, "path">[];
  return facts.map((layer, index) => ({ ...layer, path: join(directory, `${index}.gz`) }));
}

async function saltedBlob(layout: string, path: string, salt: number): Promise<{ digest: string; size: number }> {
  const copy = join(layout, "blob");
  await copyFile(path, copy);
  {
    await using file = await open(copy, "r+");
    const time = Buffer.alloc(4);
    time.writeUInt32LE(salt);
    await file.write(time, 0, 4, 4);
  }
  const hash = createHash("sha256");
  for await (const chunk of createReadStream(copy) as AsyncIterable<Buffer>) hash.update(chunk);
  const hex = hash.digest("hex");
  const { size } = await stat(copy);
  await rename(copy, join(layout, "blobs/sha256", hex));
  return { digest: `sha256:${hex}`, size };
}

async function storeBlob(layout: string, bytes: Buffer): Promise<{ digest: string; size: number }> {
  const hex = sha256(bytes);
  await writeFile(join(layout, "blobs/sha256", hex), bytes);
  return { digest: `sha256:${hex}`, size: bytes.length };
}

function sha256(bytes: Uint8Array): string {
  return createHash("sha256").update(bytes).digest("hex");
}

/** Header of a regular file (POSIX ustar). */
function tarHeader(name: string, sizeBytes: number): Buffer {
  const header = Buffer.alloc(512);
  const octal = (value: number, at: number, length: number): void => {
    header.write(`${value.toString(8).padStart(length - 1, "0")}\0`, at);
  };
  header.write(name);
  octal(0o644, 100, 8);
  octal(0, 108, 8);
  octal(0, 116, 8);
  octal(sizeBytes, 124, 12);
  octal(1_700_000_000, 136, 12);
  header.fill(0x20, 148, 156);
  header.write("0", 156);
  header.write("ustar\u000000", 257);
  octal(
    header.reduce((sum, byte) => sum + byte, 0),
    148,
    8,
  );
  return header;
}
