import { createHash } from "node:crypto";
import { createReadStream } from "node:fs";
import { mkdir, open, rename, stat, writeFile } from "node:fs/promises";
import { join } from "node:path";
import { fromUtf8 } from "../byte-string.ts";
import { type Digest, digestOf } from "../digest.ts";
import { ociConfigType, ociIndexType, ociLayerType, ociManifestType } from "../documents.ts";
import { hostPlatform, type Platform } from "../platform.ts";
import { type TarHeader, tarEnd, tarHeader, tarPadding } from "../tar/tar-writer.ts";
import { blobFile, indexFile, layoutFile, layoutVersion } from "./layout-files.ts";

/** A name in the image to be made. Parents come before children; the order given is the order in the layer. */
export type ImageFile = {
  /** Without a leading slash. */
  readonly path: string;
  /** Permission bits; 0644 for files, 0755 for directories when left out. */
  readonly mode?: number;
  readonly uid?: number;
  readonly gid?: number;
} & (
  | { readonly content: string | Uint8Array }
  /** Content of a file of this host. */
  | { readonly contentFrom: string }
  | { readonly linkTo: string }
  | { readonly directory: true }
);

/** The `config` object of an image's config, in the specification's own spelling. */
export interface ImageRunConfig {
  readonly Entrypoint?: readonly string[];
  readonly Cmd?: readonly string[];
  readonly Env?: readonly string[];
  readonly User?: string;
  readonly WorkingDir?: string;
  readonly StopSignal?: string;
  readonly ExposedPorts?: Readonly<Record<string, Record<string, never>>>;
  readonly Labels?: Readonly<Record<string, string>>;
}

export interface AssembleOptions {
  readonly files: readonly ImageFile[];
  readonly config: ImageRunConfig;
  /** The host's own when left out. */
  readonly platform?: Platform;
  /** Made by the call; must not exist. */
  readonly directory: string;
}

/** Every time in the image: content alone decides its digest. */
const epochNs = 0n;

/** Writes a one-layer OCI layout; the same files and config give the same bytes and so the same digest. */
export async function assembleImage(options: AssembleOptions): Promise<{ readonly manifestDigest: Digest }> {
  const { directory, files, config, platform = hostPlatform() } = options;
  await mkdir(directory);
  await mkdir(join(directory, "blobs", "sha256"), { recursive: true });
  const layer = await writeLayer(directory, files);
  const configBlob = await writeJson(directory, {
    created: "1970-01-01T00:00:00Z",
    architecture: platform.architecture,
    os: platform.os,
    ...(platform.variant === "" ? {} : { variant: platform.variant }),
    config,
    rootfs: { type: "layers", diff_ids: [layer.digest] }, // the layer is stored uncompressed: zlib versions differ
  });
  const manifest = await writeJson(directory, {
    schemaVersion: 2,
    mediaType: ociManifestType,
    config: { mediaType: ociConfigType, ...configBlob },
    layers: [{ mediaType: ociLayerType, ...layer }],
  });
  const { os, architecture, variant } = platform;
  const index = {
    schemaVersion: 2,
    mediaType: ociIndexType,
    manifests: [
      {
        mediaType: ociManifestType,
        ...manifest,
        platform: { os, architecture, ...(variant === "" ? {} : { variant }) },
      },
    ],
  };
  await writeFile(join(directory, indexFile), JSON.stringify(index));
  await writeFile(join(directory, layoutFile), JSON.stringify({ imageLayoutVersion: layoutVersion }));
  return { manifestDigest: manifest.digest };
}

interface StoredBlob {
  readonly digest: Digest;
  readonly size: number;
}

async function writeJson(directory: string, value: unknown): Promise<StoredBlob> {
  const text = JSON.stringify(value);
  const digest = digestOf(text);
  await writeFile(join(directory, blobFile(digest)), text);
  return { digest, size: Buffer.byteLength(text) };
}

async function writeLayer(directory: string, files: readonly ImageFile[]): Promise<StoredBlob> {
  const path = join(directory, "blobs", "layer.part");
  const hash = createHash("sha256");
  let size = 0;
  const file = await open(path, "wx");
  try {
    for await (const chunk of layerChunks(files)) {
      hash.update(chunk);
      size += chunk.length;
      await file.writeFile(chunk);
    }
  } finally {
    await file.close();
  }
  const digest = `sha256:${hash.digest("hex")}` as Digest;
  await rename(path, join(directory, blobFile(digest)));
  return { digest, size };
}

async function* layerChunks(files: readonly ImageFile[]): AsyncGenerator<Uint8Array> {
  for (const file of files) {
    const header: TarHeader = {
      type: "file",
      name: fromUtf8(file.path),
      linkName: "",
      mode: file.mode ?? ("directory" in file ? 0o755 : "linkTo" in file ? 0o777 : 0o644),
      uid: file.uid ?? 0,
      gid: file.gid ?? 0,
      mtimeNs: epochNs,
      sizeBytes: 0,
      deviceMajor: 0,
      deviceMinor: 0,
      xattrs: new Map(),
    };
    if ("directory" in file) yield tarHeader({ ...header, type: "directory", name: `${header.name}/` });
    else if ("linkTo" in file) yield tarHeader({ ...header, type: "symlink", linkName: fromUtf8(file.linkTo) });
    else if ("content" in file) {
      const content = Buffer.from(file.content);
      yield tarHeader({ ...header, sizeBytes: content.length });
      yield content;
      yield tarPadding(content.length);
    } else {
      const { size } = await stat(file.contentFrom);
      yield tarHeader({ ...header, sizeBytes: size });
      let bytes = 0;
      for await (const chunk of createReadStream(file.contentFrom) as AsyncIterable<Buffer>) {
        bytes += chunk.length;
        yield chunk;
      }
      if (bytes !== size) throw new Error(`${file.contentFrom} changed while it was read`);
      yield tarPadding(size);
    }
  }
  yield tarEnd();
}
