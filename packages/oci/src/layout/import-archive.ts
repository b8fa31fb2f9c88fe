import { mkdir, open, rm } from "node:fs/promises";
import { join } from "node:path";
import { kib, ServiceError } from "@unkey/base";
import { type ByteString, printable } from "../byte-string.ts";
import { type Digest, digestAlgorithm, StreamingDigest, shortDigest } from "../digest.ts";
import { maxManifestBytes } from "../documents.ts";
import { InvalidInput, rethrowInvalid } from "../invalid-input.ts";
import { decompress, tellCompression } from "../layer/decompress.ts";
import { checkBytes, checkCount, type ImageLimits } from "../layer/limits.ts";
import { type TarEntry, TarReader } from "../tar/tar-reader.ts";
import { type ArchiveFile, dockerManifestFile, isDockerMember, layoutOfDockerArchive } from "./docker-archive.ts";
import { blobFile, digestOfBlobFile, indexFile, layoutFile, maxLayoutFileBytes } from "./layout-files.ts";

const maxEntries = 8192;
/** Documents and configs beside the layers. */
const sparePerLayerBytes = 64 * kib;
/** Holds what only manifest.json gives a meaning, until that has been read: it may come last. */
const pendingDirectory = "pending";

/**
 * Unpacks an image archive into an existing empty directory, as an OCI layout: the tar archive of one, or what `docker save`
 * writes, either of them plain, gzip or zstd. Archives that are both count as layouts. Only `oci-layout`, `index.json` and
 * blobs are there at the end, under names made here; every blob is checked against the digest in its name. Other files are passed
 * over; links in the place of a layout's files, duplicates and sparse files are refused. Throws IMAGE_ARCHIVE_INVALID,
 * IMAGE_DIGEST_MISMATCH or IMAGE_TOO_LARGE; what was written until then is the caller's to remove.
 */
export async function importLayoutArchive(
  chunks: AsyncIterable<Uint8Array>,
  directory: string,
  limits: ImageLimits,
): Promise<void> {
  const reader = new TarReader(unpacked(chunks, limits));
  await mkdir(join(directory, "blobs", "sha256"), { recursive: true, mode: 0o700 });
  await mkdir(join(directory, "blobs", "sha512"), { recursive: true, mode: 0o700 });
  await mkdir(join(directory, pendingDirectory), { mode: 0o700 });
  try {
    const archive = new ArchiveReader(reader, directory, limits);
    await archive.readAll();
    if (!archive.isLayout) await archive.readDockerArchive();
  } catch (error) {
    rethrowInvalid(error, "IMAGE_ARCHIVE_INVALID", "the image archive");
  } finally {
    await reader.close();
  }
  await rm(join(directory, pendingDirectory), { recursive: true });
}

/** The tar stream; a bomb is told by what has arrived of it so far. */
async function* unpacked(chunks: AsyncIterable<Uint8Array>, limits: ImageLimits): AsyncGenerator<Uint8Array> {
  let received = 0;
  let given = 0;
  async function* counted(): AsyncGenerator<Uint8Array> {
    for await (const chunk of chunks) {
      received += chunk.length;
      yield chunk;
    }
  }
  const told = await tellCompression(counted());
  for await (const chunk of decompress(told.chunks, told.compression)) {
    given += chunk.length;
    checkBytes("the archive unpacks to", given, limits.uncompressedBytes);
    if (given > limits.compressionRatio * received) {
      checkBytes("the archive unpacks to", given, Math.max(ratioFreeBytes, limits.compressionRatio * received));
    }
    yield chunk;
  }
}

const ratioFreeBytes = 64 * 1024 * kib;

interface Member {
  readonly file: string;
  readonly digest: Digest | undefined;
  readonly maxBytes: number;
}

class ArchiveReader {
  readonly #reader: TarReader;
  readonly #directory: string;
  readonly #limits: ImageLimits;
  readonly #seen = new Set<string>();
  readonly #files = new Map<ByteString, ArchiveFile>();
  readonly #links = new Map<ByteString, ByteString>();
  #dockerManifest: Buffer | undefined;

  constructor(reader: TarReader, directory: string, limits: ImageLimits) {
    this.#reader = reader;
    this.#directory = directory;
    this.#limits = limits;
  }

  get isLayout(): boolean {
    return this.#seen.has(layoutFile) && this.#seen.has(indexFile);
  }

  async readAll(): Promise<void> {
    const maxBytes = this.#limits.compressedBytes + this.#limits.layers * sparePerLayerBytes;
    let entries = 0;
    let bytes = 0;
    for (let entry = await this.#reader.next(); entry !== undefined; entry = await this.#reader.next()) {
      checkCount("the archive's entries are", ++entries, maxEntries);
      bytes += entry.sizeBytes;
      checkBytes("the archive is", bytes, maxBytes);
      const name: ByteString = entry.name.replace(/^(?:\.?\/)+/, "");
      const wanted = layoutMember(name);
      if (wanted !== undefined) await this.#readLayoutMember(entry, name, wanted);
      else if (name === dockerManifestFile) await this.#readDockerManifest(entry);
      else if (isDockerMember(name)) await this.#readDockerMember(entry, name);
    }
  }

  async readDockerArchive(): Promise<void> {
    if (this.#dockerManifest === undefined) {
      const missing = [layoutFile, indexFile].filter((file) => !this.#seen.has(file)).join(" and no ");
      throw new InvalidInput(
        `it has no ${missing} of an OCI layout, and no ${dockerManifestFile} as \`docker save\` writes it`,
      );
    }
    const contents = { files: this.#files, links: this.#links };
    await layoutOfDockerArchive(this.#dockerManifest, contents, this.#directory, this.#limits);
  }

  async #readLayoutMember(entry: TarEntry, name: ByteString, { file, digest, maxBytes }: Member): Promise<void> {
    this.#checkFile(entry, file);
    checkBytes(`${file} is`, entry.sizeBytes, maxBytes);
    const found = await this.#write(file, digest === undefined ? "sha256" : digestAlgorithm(digest));
    if (digest === undefined) return;
    if (found !== digest) {
      throw new ServiceError(
        "IMAGE_DIGEST_MISMATCH",
        `the archive's blob ${shortDigest(digest)} has the digest ${shortDigest(found)}`,
      );
    }
    this.#files.set(name, { file, digest, sizeBytes: entry.sizeBytes });
  }

  async #readDockerManifest(entry: TarEntry): Promise<void> {
    this.#checkFile(entry, dockerManifestFile);
    checkBytes(`${dockerManifestFile} is`, entry.sizeBytes, maxManifestBytes);
    const parts: Buffer[] = [];
    for await (const chunk of this.#reader.content()) parts.push(Buffer.from(chunk));
    this.#dockerManifest = Buffer.concat(parts);
  }

  async #readDockerMember(entry: TarEntry, name: ByteString): Promise<void> {
    if (entry.type === "symlink") {
      this.#checkOnce(entry, name);
      this.#links.set(name, entry.linkName);
      return;
    }
    if (entry.type !== "file") return; // refused when manifest.json names it
    this.#checkFile(entry, name);
    const file = join(pendingDirectory, String(this.#files.size));
    const digest = await this.#write(file, "sha256");
    this.#files.set(name, { file, digest, sizeBytes: entry.sizeBytes });
  }

  #checkFile(entry: TarEntry, name: string): void {
    if (entry.type !== "file") throw new InvalidInput(`${printable(entry.name)} is not a regular file`);
    if (entry.data !== undefined) throw new InvalidInput(`${printable(entry.name)} is sparse`);
    this.#checkOnce(entry, name);
  }

  #checkOnce(entry: TarEntry, name: string): void {
    if (this.#seen.has(name)) throw new InvalidInput(`${printable(entry.name)} is there twice`);
    this.#seen.add(name);
  }

  async #write(file: string, algorithm: "sha256" | "sha512"): Promise<Digest> {
    const hash = new StreamingDigest(algorithm);
    const handle = await open(join(this.#directory, file), "wx", 0o600);
    try {
      for await (const chunk of this.#reader.content()) {
        hash.update(chunk);
        for (let at = 0; at < chunk.length; ) at += (await handle.write(chunk, at)).bytesWritten;
      }
    } finally {
      await handle.close();
    }
    return hash.finish();
  }
}

function layoutMember(name: ByteString): Member | undefined {
  if (name === layoutFile) return { file: layoutFile, digest: undefined, maxBytes: maxLayoutFileBytes };
  if (name === indexFile) return { file: indexFile, digest: undefined, maxBytes: maxManifestBytes };
  const digest = digestOfBlobFile(name);
  return digest === undefined ? undefined : { file: blobFile(digest), digest, maxBytes: Number.MAX_SAFE_INTEGER };
}
