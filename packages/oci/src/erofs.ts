import { createHash } from "node:crypto";
import { runTool } from "./run-tool.ts";

export interface ErofsOptions {
  readonly sourceDirectory: string;
  readonly imagePath: string;
  /** What the image is made from; the file system's UUID is derived from it. */
  readonly identity: string;
  /** The newest mtime of the tree: becomes the creation time, so that the clock leaves no trace. */
  readonly newestMtimeNs: bigint;
  readonly signal: AbortSignal;
}

/**
 * Writes a directory as an uncompressed EROFS image with mkfs.erofs (erofs-utils 1.5 or newer). The same tree and identity
 * give the same bytes: names are sorted by the tool, and SOURCE_DATE_EPOCH, rounded up so that no mtime is newer, fixes
 * the only time that is not the tree's own.
 */
export async function makeErofs(options: ErofsOptions): Promise<void> {
  const epochSeconds = (options.newestMtimeNs + 999_999_999n) / 1_000_000_000n;
  await runTool({
    command: "mkfs.erofs",
    package: "erofs-utils",
    args: ["--quiet", "-U", uuidOf(options.identity), options.imagePath, options.sourceDirectory],
    env: { SOURCE_DATE_EPOCH: String(epochSeconds) },
    signal: options.signal,
  });
}

/** A version 8 UUID (RFC 9562: the form for derived values) of a text. */
function uuidOf(text: string): string {
  const bytes = createHash("sha256").update(text).digest().subarray(0, 16);
  bytes.writeUInt8((bytes.readUInt8(6) & 0x0f) | 0x80, 6);
  bytes.writeUInt8((bytes.readUInt8(8) & 0x3f) | 0x80, 8);
  return bytes.toString("hex").replace(/^(.{8})(.{4})(.{4})(.{4})(.{12})$/, "$1-$2-$3-$4-$5");
}
