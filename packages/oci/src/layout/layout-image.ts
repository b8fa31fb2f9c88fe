import { constants } from "node:fs";
import { type FileHandle, open } from "node:fs/promises";
import { join } from "node:path";
import { kib, ServiceError } from "@unkey/base";
import { digestOf } from "../digest.ts";
import { type Descriptor, maxManifestBytes, ociIndexType, parseDocument } from "../documents.ts";
import type { FetchedDocument, FetchOptions, ImageSource } from "../image-source.ts";
import { rethrowInvalid } from "../invalid-input.ts";
import { optionalString, parseJsonObject } from "../json.ts";
import { checkBytes } from "../layer/limits.ts";
import { formatPlatform } from "../platform.ts";
import { collectVerified, verified } from "../verified.ts";
import { blobFile, indexFile, layoutFile, maxLayoutFileBytes } from "./layout-files.ts";

/** containerd and Docker write the whole name here, and only the tag into the other. */
const fullNameAnnotation = "io.containerd.image.name";
const refNameAnnotation = "org.opencontainers.image.ref.name";

/** The one image of an OCI layout directory. Links are not followed. */
export class LayoutImage implements ImageSource {
  readonly name: string;
  readonly registry = undefined;
  readonly #directory: string;

  constructor(directory: string, name = "the image archive") {
    this.#directory = directory;
    this.name = name;
  }

  async root(signal: AbortSignal): Promise<FetchedDocument> {
    signal.throwIfAborted();
    try {
      const layout = parseJsonObject(await this.#small(layoutFile, maxLayoutFileBytes), layoutFile);
      const version = optionalString(layout, "imageLayoutVersion") ?? "";
      if (!version.startsWith("1.")) {
        throw new ServiceError(
          "IMAGE_ARCHIVE_INVALID",
          `${this.name} has the layout version ${JSON.stringify(version.slice(0, 40))}, not 1.x`,
        );
      }
      const bytes = await this.#small(indexFile, maxManifestBytes);
      const index = parseDocument(bytes, ociIndexType);
      if (index.kind !== "index")
        throw new ServiceError("IMAGE_ARCHIVE_INVALID", `${this.name}: ${indexFile} is not an index`);
      // One image may stand there under several names.
      const [only, ...others] = new Map(index.manifests.map((member) => [member.digest, member])).values();
      if (only === undefined) throw new ServiceError("IMAGE_ARCHIVE_INVALID", `${this.name} holds no image`);
      if (others.length === 0) return await this.document(only, signal);
      this.#refuseSeveralImages([only, ...others]);
      return { bytes, digest: digestOf(bytes), mediaType: ociIndexType };
    } catch (error) {
      rethrowInvalid(error, "IMAGE_ARCHIVE_INVALID", this.name);
    }
  }

  async document(descriptor: Descriptor, signal: AbortSignal): Promise<FetchedDocument> {
    checkBytes("the image's manifest is", descriptor.sizeBytes, maxManifestBytes);
    const bytes = await this.#document(descriptor, "the manifest", signal);
    return { bytes, digest: descriptor.digest, mediaType: descriptor.mediaType };
  }

  async config(descriptor: Descriptor, signal: AbortSignal): Promise<Uint8Array> {
    checkBytes("the image's config is", descriptor.sizeBytes, maxManifestBytes);
    return this.#document(descriptor, "the config", signal);
  }

  async *openLayer(descriptor: Descriptor, { signal, onBytes }: FetchOptions): AsyncGenerator<Uint8Array> {
    const handle = await this.#open(blobFile(descriptor.digest));
    let bytes = 0;
    try {
      for await (const chunk of verified(chunksOf(handle, signal), descriptor, "the layer")) {
        onBytes?.((bytes += chunk.length));
        yield chunk;
      }
    } finally {
      await handle.close();
    }
  }

  async canRead(descriptor: Descriptor, signal: AbortSignal): Promise<boolean> {
    signal.throwIfAborted();
    try {
      await (await this.#open(blobFile(descriptor.digest))).close();
      return true; // an import has checked every blob against its name
    } catch (error) {
      if (error instanceof ServiceError) return false;
      throw error;
    }
  }

  related(): undefined {
    return undefined;
  }

  /** Several members are one image for several platforms, or several images: then none is the one that was meant. */
  #refuseSeveralImages(members: readonly Descriptor[]): void {
    const platforms = members.map(({ platform }) => (platform === undefined ? "" : formatPlatform(platform)));
    if (!platforms.includes("") && new Set(platforms).size === platforms.length) return;
    const names = members
      .map(({ annotations, digest }) => annotations[fullNameAnnotation] ?? annotations[refNameAnnotation] ?? digest)
      .slice(0, 8);
    throw new ServiceError(
      "IMAGE_ARCHIVE_INVALID",
      `${this.name} holds ${members.length} images (${names.join(", ").slice(0, 300)}), not one`,
    );
  }

  async #small(file: string, maxBytes: number): Promise<Uint8Array> {
    const handle = await this.#open(file);
    try {
      const { size } = await handle.stat();
      checkBytes(`${file} is`, size, maxBytes);
      return await handle.readFile();
    } finally {
      await handle.close();
    }
  }

  async #document(descriptor: Descriptor, what: string, signal: AbortSignal): Promise<Uint8Array> {
    const handle = await this.#open(blobFile(descriptor.digest));
    try {
      return await collectVerified(chunksOf(handle, signal), descriptor, what);
    } finally {
      await handle.close();
    }
  }

  async #open(file: string): Promise<FileHandle> {
    try {
      const handle = await open(join(this.#directory, file), constants.O_RDONLY | constants.O_NOFOLLOW);
      if ((await handle.stat()).isFile()) return handle;
      await handle.close();
    } catch (cause) {
      throw new ServiceError("IMAGE_ARCHIVE_INVALID", `${this.name} does not hold ${file}`, { cause });
    }
    throw new ServiceError("IMAGE_ARCHIVE_INVALID", `${this.name}: ${file} is not a regular file`);
  }
}

async function* chunksOf(handle: FileHandle, signal: AbortSignal): AsyncGenerator<Uint8Array> {
  const stream = handle.createReadStream({ autoClose: false, highWaterMark: 256 * kib }) as AsyncIterable<Buffer>;
  for await (const chunk of stream) {
    signal.throwIfAborted();
    yield chunk;
  }
}
