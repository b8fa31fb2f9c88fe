import { createHash } from "node:crypto";
import { writeFile } from "node:fs/promises";
import { fromUtf8 } from "../byte-string.ts";
import { type Digest, digestOf } from "../digest.ts";
import type { LayerBlob } from "../layer/layer-stream.ts";
import { type TarHeader, tarEnd, tarHeader, tarPadding } from "../tar/tar-writer.ts";

/** One entry of a test archive: what is left out gets a plain value. */
export type TarFixture = Partial<TarHeader> & { readonly name: string; readonly content?: string | Buffer };

/** A tar archive of `entries`, exactly as they are: hostile ones included. */
export function tarOf(entries: readonly TarFixture[]): Buffer {
  const parts: Buffer[] = [];
  for (const { content = "", ...entry } of entries) {
    const body = Buffer.from(content);
    const header = tarHeader({
      type: "file",
      linkName: "",
      mode: entry.type === "directory" ? 0o755 : 0o644,
      uid: 0,
      gid: 0,
      mtimeNs: 1_700_000_000_000_000_000n,
      deviceMajor: 0,
      deviceMinor: 0,
      xattrs: new Map(),
      sizeBytes: body.length,
      ...entry,
      name: fromUtf8(entry.name),
    });
    parts.push(header, body, tarPadding(body.length));
  }
  return Buffer.concat([...parts, tarEnd()]);
}

/** Writes `stored` (the archive, or a compressed form of it) to `path` as a layer whose diff id is that of `archive`. */
export async function layerOf(path: string, archive: Buffer, stored: Buffer = archive): Promise<LayerBlob> {
  await writeFile(path, stored);
  const diffId = `sha256:${createHash("sha256").update(archive).digest("hex")}` as Digest;
  return { path, digest: digestOf(stored), sizeBytes: stored.length, diffId };
}
