import { execFile, spawnSync } from "node:child_process";
import { existsSync } from "node:fs";
import { mkdtemp, readFile, rm } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { promisify } from "node:util";
import { digestHex, digestOf } from "../digest.ts";
import { defaultImageLimits, type ImageLimits } from "../layer/limits.ts";
import { contentName } from "../layer/unpack-layer.ts";
import type { AssembledRootfs } from "../rootfs/rootfs-assembly.ts";
import { type TarEntry, TarReader } from "../tar/tar-reader.ts";
import { type AssembleLayersOptions, assembleLayers, type TestUnpackedLayer } from "./assemble-layers.ts";
import { unpackBytes } from "./unpack-bytes.ts";

/** A layer as bytes: `stored` is what travels, `archive` what the image's config promises. */
export interface TestLayer {
  readonly archive: Buffer;
  readonly stored?: Buffer;
}

export interface BuiltImage extends AssembledRootfs {
  readonly imagePath: string;
  /** What the image is mounted with, in its order. */
  readonly devicePaths: readonly string[];
}

export interface ImageOptions extends Partial<Omit<AssembleLayersOptions, "limits">> {
  readonly limits?: Partial<ImageLimits>;
  /** Which layers are devices of the image, of those that have content for one; none unless said. */
  readonly attach?: (layer: number) => boolean;
}

/** In which forms an image is compared: of one file, all layers devices, some of them. */
export const attachments: readonly (readonly [name: string, attach: (layer: number) => boolean])[] = [
  ["in one file", () => false],
  ["with devices", () => true],
  ["with every second layer a device", (layer) => layer % 2 === 1],
];

/** Unpacks layers and assembles them, each step through its door, and lends the image. The folder is removed afterwards. */
export async function withImage<Result>(
  layers: readonly TestLayer[],
  { attach = () => false, ...options }: ImageOptions,
  use: (image: BuiltImage) => Result | Promise<Result>,
): Promise<Result> {
  const scratch = await mkdtemp(join(tmpdir(), "oci-image-"));
  const signal = options.signal ?? new AbortController().signal;
  const limits = { ...defaultImageLimits, ...options.limits };
  try {
    const unpacked: TestUnpackedLayer[] = [];
    const devicePaths: string[] = [];
    for (const [index, { archive, stored = archive }] of layers.entries()) {
      const directory = await mkdtemp(join(scratch, "layer-"));
      const layer = { digest: digestOf(stored), diffId: digestOf(archive), directory };
      await unpackBytes(stored, { ...layer, limits });
      const contentPath = join(directory, contentName);
      const content = attach(index) ? await readFile(contentPath) : Buffer.alloc(0);
      if (content.length > 0) devicePaths.push(contentPath);
      unpacked.push({ ...layer, ...(content.length > 0 && { device: digestHex(digestOf(content)) }) });
    }
    const imagePath = join(scratch, "image");
    const image = await assembleLayers({
      format: "erofs",
      identity: "test",
      policy: { setuid: "keep" },
      ...options,
      layers: unpacked,
      imagePath,
      limits,
      scratchDirectory: scratch,
      signal,
    });
    return await use({ ...image, imagePath, devicePaths: options.format === "ext4" ? [] : devicePaths });
  } finally {
    await rm(scratch, { recursive: true, force: true });
  }
}

/** Throws unless erofs-utils' checker, which reads all of the image, finds nothing. */
export function checkErofs(imagePath: string, devicePaths: readonly string[] = []): void {
  const devices = devicePaths.map((path) => `--device=${path}`);
  const { status, stdout, stderr } = spawnSync("fsck.erofs", [...devices, imagePath], { encoding: "utf8" });
  if (status !== 0 || stdout + stderr !== "") throw new Error(`fsck.erofs ended with ${status}: ${stdout}${stderr}`);
}

/** Why there is no checker here; false when there is. */
export const needsErofsUtils: false | string = existsSync("/usr/bin/fsck.erofs")
  ? false
  : "erofs-utils is not installed";

/** Why images cannot be mounted here; false when they can. */
export function needsMount(kind: "erofs" | "ext4" = "erofs"): false | string {
  if (process.getuid?.() !== 0) return "root is needed to mount";
  if (kind === "erofs" && needsErofsUtils !== false) return needsErofsUtils;
  const script = `modprobe -q ${kind}; grep -qw ${kind} /proc/filesystems && losetup -f`;
  const { status } = spawnSync("unshare", ["--mount", "sh", "-c", script], { stdio: "pipe" });
  return status === 0 ? false : `the kernel cannot mount ${kind} from a loop device`;
}

/** An entry with its content, as the kernel shows it in a mounted image. */
export interface Seen {
  readonly entry: TarEntry;
  readonly content: Buffer;
}

/** Loop devices of the image's devices are let go of before it is read: those in use end with the mount, others at once. */
const tarScript = `
  kind=$1 options=loop,ro loops=
  shift
  trap '[ -z "$loops" ] || losetup --detach $loops' EXIT
  for device; do
    loop=$(losetup --find --show --read-only "$device") || exit
    loops="$loops $loop" options="$options,device=$loop"
  done
  mount -t "$kind" -o "$options" "$0" /mnt || exit
  [ -z "$loops" ] || losetup --detach $loops
  loops=
  exec tar -C /mnt --format=pax --sort=name --numeric-owner --xattrs --xattrs-include="*" -cf - .`;

/** Every path of an image as GNU tar reads it from a mount that ends with its own namespace. Of a link group, the first has the content. */
export async function seenIn(
  imagePath: string,
  { kind = "erofs", devicePaths = [] }: { kind?: "erofs" | "ext4"; devicePaths?: readonly string[] } = {},
): Promise<Map<string, Seen>> {
  const script = ["--mount", "sh", "-c", tarScript, imagePath, kind, ...devicePaths];
  const { stdout } = await promisify(execFile)("unshare", script, {
    encoding: "buffer",
    maxBuffer: 1 << 28,
    env: { ...process.env, LC_ALL: "C" },
  });
  return entriesIn(stdout, ".");
}

/** Every path below `root` in an archive, in its order. */
export async function entriesIn(archive: Buffer, root: string): Promise<Map<string, Seen>> {
  const reader = new TarReader(inPieces(archive));
  const found = new Map<string, Seen>();
  for (let entry = await reader.next(); entry !== undefined; entry = await reader.next()) {
    const parts: Buffer[] = [];
    for await (const chunk of reader.content()) parts.push(chunk);
    found.set(entry.name.slice(root.length + 1).replace(/\/$/, ""), { entry, content: Buffer.concat(parts) });
  }
  return found;
}

async function* inPieces(bytes: Buffer): AsyncGenerator<Buffer> {
  for (let at = 0; at < bytes.length; at += 60_000) yield bytes.subarray(at, at + 60_000);
}
