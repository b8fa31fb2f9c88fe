import { createHash } from "node:crypto";
import { mkdtemp, readFile, rm } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { type ErofsDirectory, type ErofsFile, writeErofs } from "@unkey/erofs";

const blockBytes = 4096;

export interface ImageInParts {
  readonly image: Buffer;
  readonly parts: readonly Buffer[];
}

/** An EROFS image of executable files by name in /bin, the content of each in a part of its own and filled up with zeros to whole blocks. */
export async function imageInParts(files: Readonly<Record<string, Uint8Array>>): Promise<ImageInParts> {
  const parts = Object.values(files).map((content) => {
    const part = Buffer.alloc(Math.ceil(content.length / blockBytes) * blockBytes);
    part.set(content);
    return part;
  });
  const metadata = { mode: 0o755, uid: 0, gid: 0, mtimeNs: 0n, xattrs: new Map<string, Buffer>() };
  const nodes = parts.map((part, device): ErofsFile => {
    return { kind: "file", metadata, sizeBytes: part.length, place: { device, block: 0 } };
  });
  const bin: ErofsDirectory = {
    kind: "directory",
    metadata,
    children: new Map(Object.keys(files).map((name, index) => [name, { node: nodes[index] as ErofsFile }])),
  };
  const dir = await mkdtemp(join(tmpdir(), "metald-image-"));
  try {
    const imagePath = join(dir, "image.erofs");
    await writeErofs({
      root: { kind: "directory", metadata, children: new Map([["bin", { node: bin }]]) },
      files: nodes,
      devices: parts.map((part) => ({
        digest: createHash("sha256").update(part).digest("hex"),
        blockCount: part.length / blockBytes,
      })),
      content: nothing(),
      imagePath,
      identity: "test",
      signal: AbortSignal.timeout(30_000),
    });
    return { image: await readFile(imagePath), parts };
  } finally {
    await rm(dir, { recursive: true });
  }
}

async function* nothing(): AsyncGenerator<Uint8Array> {
  // Everything is in the parts.
}
