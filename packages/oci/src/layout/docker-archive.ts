import { open, rename, writeFile } from "node:fs/promises";
import { join } from "node:path";
import { ServiceError } from "@unkey/base";
import { type ByteString, printable } from "../byte-string.ts";
import { type Digest, digestHex, digestOf, shortDigest } from "../digest.ts";
import { maxManifestBytes, ociConfigType, ociIndexType, ociLayerType, ociManifestType } from "../documents.ts";
import { InvalidInput } from "../invalid-input.ts";
import { asObject, optionalString, optionalStrings, parseJsonArray } from "../json.ts";
import { checkBytes, checkCount, type ImageLimits } from "../layer/limits.ts";
import { blobFile, indexFile, layoutFile, layoutVersion } from "./layout-files.ts";

/*
 * What `docker save` writes (https://github.com/moby/moby/blob/v28.2.2/image/spec/v1.2.md, "Combined Image JSON + Filesystem
 * Changeset Format"): manifest.json names a config and layers among the archive's files. podman, buildah, skopeo, kaniko and Bazel write
 * it too. Files are named by id or digest, and a layer may be a symbolic link to another one's.
 */

export const dockerManifestFile = "manifest.json";

/** A file of the archive, kept under a name of ours. */
export interface ArchiveFile {
  /** Below the directory. */
  readonly file: string;
  readonly digest: Digest;
  readonly sizeBytes: number;
}

/** What an archive holds, by the names in it. */
export interface ArchiveContents {
  readonly files: ReadonlyMap<ByteString, ArchiveFile>;
  readonly links: ReadonlyMap<ByteString, ByteString>;
}

interface SavedImage {
  readonly config: string;
  readonly layers: readonly string[];
  readonly tags: readonly string[];
}

/** More than any real chain: layer links lead to the layer itself. */
const maxLinks = 8;

/** True for names that manifest.json may refer to. */
export function isDockerMember(name: ByteString): boolean {
  return /\.(?:json|tar|tar\.gz|tgz)$|^sha256:[0-9a-f]{64}$/.test(name);
}

/**
 * Makes the files of a docker archive, which are in `directory` already, an OCI layout of its one image. Throws InvalidInput,
 * IMAGE_ARCHIVE_INVALID with the names when there are several images, IMAGE_DIGEST_MISMATCH, IMAGE_TOO_LARGE.
 */
export async function layoutOfDockerArchive(
  manifestJson: Uint8Array,
  contents: ArchiveContents,
  directory: string,
  limits: ImageLimits,
): Promise<void> {
  const image = theOneImage(parseSavedImages(manifestJson));
  checkCount("the image's layers are", image.layers.length, limits.layers);
  const config = fileOf(contents, image.config);
  checkBytes("the image's config is", config.sizeBytes, maxManifestBytes);
  const named = /(?:^|[/:])([0-9a-f]{64})(?:\.json)?$/.exec(image.config)?.[1];
  if (named !== undefined && named !== digestHex(config.digest)) {
    throw new ServiceError(
      "IMAGE_DIGEST_MISMATCH",
      `the archive's ${printable(image.config)} has the digest ${shortDigest(config.digest)}`,
    );
  }
  const layers = image.layers.map((name) => fileOf(contents, name));
  const manifest = {
    schemaVersion: 2,
    mediaType: ociManifestType,
    config: { mediaType: ociConfigType, digest: config.digest, size: config.sizeBytes },
    layers: await Promise.all(
      layers.map(async ({ file, digest, sizeBytes }) => ({
        mediaType: `${ociLayerType}${await compressionOf(join(directory, file))}`,
        digest,
        size: sizeBytes,
      })),
    ),
  };
  for (const { file, digest } of new Map([config, ...layers].map((each) => [each.digest, each])).values()) {
    if (file !== blobFile(digest)) await rename(join(directory, file), join(directory, blobFile(digest)));
  }
  const bytes = Buffer.from(JSON.stringify(manifest));
  const digest = digestOf(bytes);
  await writeFile(join(directory, blobFile(digest)), bytes);
  const manifests = [{ mediaType: ociManifestType, digest, size: bytes.length }];
  await writeFile(join(directory, indexFile), JSON.stringify({ schemaVersion: 2, mediaType: ociIndexType, manifests }));
  await writeFile(join(directory, layoutFile), JSON.stringify({ imageLayoutVersion: layoutVersion }));
}

function parseSavedImages(bytes: Uint8Array): SavedImage[] {
  return parseJsonArray(bytes, dockerManifestFile).map((item) => {
    const image = asObject(item, dockerManifestFile);
    const config = optionalString(image, "Config");
    const layers = optionalStrings(image, "Layers");
    if (config === undefined || layers === undefined) {
      throw new InvalidInput(`${dockerManifestFile} names no Config or no Layers`);
    }
    return { config, layers, tags: optionalStrings(image, "RepoTags") ?? [] };
  });
}

/** The same image under several names is one. */
function theOneImage(images: readonly SavedImage[]): SavedImage {
  const different = [...new Map(images.map((image) => [image.config, image])).values()];
  const [only, ...others] = different;
  if (only === undefined) throw new InvalidInput("it holds no image");
  if (others.length === 0) return only;
  const names = different.map(({ config, tags }) => tags[0] ?? config).slice(0, 8);
  throw new InvalidInput(
    `it holds ${different.length} images (${names.join(", ").slice(0, 300)}), not one: save the one to deploy by itself`,
  );
}

function fileOf({ files, links }: ArchiveContents, name: string): ArchiveFile {
  let path = inArchive(Buffer.from(name, "utf8").toString("latin1"));
  for (let hops = 0; hops <= maxLinks; hops++) {
    const file = files.get(path);
    if (file !== undefined) return file;
    const target = links.get(path);
    if (target === undefined)
      throw new InvalidInput(`it has no ${printable(path)}, which its ${dockerManifestFile} names`);
    path = inArchive(target.startsWith("/") ? target : `${path.slice(0, path.lastIndexOf("/") + 1)}${target}`);
  }
  throw new InvalidInput(`${printable(path)} is a link in a circle`);
}

/** A name without `.` and `..`; one that leads out of the archive is refused. */
function inArchive(name: ByteString): ByteString {
  const components: string[] = [];
  for (const component of name.split("/")) {
    if (component === "" || component === ".") continue;
    if (component !== "..") components.push(component);
    else if (components.pop() === undefined) throw new InvalidInput(`${printable(name)} leads out of the archive`);
  }
  return components.join("/");
}

/** The suffix of the media type of a layer, told by its first bytes. */
async function compressionOf(path: string): Promise<"" | "+gzip" | "+zstd"> {
  const magic = Buffer.alloc(4);
  await using file = await open(path, "r");
  await file.read(magic, 0, 4, 0);
  if (magic.readUInt16BE(0) === 0x1f8b) return "+gzip";
  return magic.readUInt32BE(0) === 0x28b52ffd ? "+zstd" : "";
}
