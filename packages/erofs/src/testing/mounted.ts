import { execFileSync, spawnSync } from "node:child_process";
import { existsSync } from "node:fs";
import { join } from "node:path";
import type { Walked } from "./walk.ts";

/** Why images cannot be mounted here, or false. */
export function mountObstacle(): false | string {
  if (process.getuid?.() !== 0) return "root is needed to mount";
  if (!existsSync("/usr/bin/fsck.erofs")) return "fsck.erofs is not installed";
  if (!existsSync("/usr/bin/getfattr")) return "getfattr is not installed";
  try {
    execFileSync(
      "unshare",
      ["--mount", "sh", "-c", "modprobe -q erofs; grep -qw erofs /proc/filesystems && losetup -f"],
      { stdio: "pipe" },
    );
    return false;
  } catch {
    return "the kernel cannot mount EROFS from a loop device";
  }
}

/** Throws unless erofs-utils' checker, which reads all of the image, finds nothing; it may say so and still exit 0. */
export function checkImage(imagePath: string, devicePaths: readonly string[] = []): void {
  const devices = devicePaths.map((path) => `--device=${path}`);
  const { status, stdout, stderr } = spawnSync("fsck.erofs", [...devices, imagePath], { encoding: "utf8" });
  if (status !== 0 || stdout + stderr !== "") throw new Error(`fsck.erofs ended with ${status}: ${stdout}${stderr}`);
}

/**
 * Mounts $0, of which the next $1 arguments are devices, and becomes the command behind them. Loop devices of the devices are let
 * go of before: those in use end with the mount, others at once.
 */
const mountScript = `
  options=loop,ro count=$1 loops=
  shift
  trap '[ -z "$loops" ] || losetup --detach $loops' EXIT
  while [ "$count" -gt 0 ]; do
    loop=$(losetup --find --show --read-only "$1") || exit
    loops="$loops $loop" options="$options,device=$loop" count=$((count - 1))
    shift
  done
  mount -t erofs -o "$options" "$0" /mnt || exit
  [ -z "$loops" ] || losetup --detach $loops
  loops=
  exec "$@"`;

/** Runs a command with the image mounted at /mnt and returns what it prints; the mount ends with its namespace. */
export function runMounted(imagePath: string, command: readonly string[], devicePaths: readonly string[] = []): Buffer {
  const mount = ["--mount", "sh", "-c", mountScript, imagePath, String(devicePaths.length), ...devicePaths];
  return execFileSync("unshare", [...mount, ...command], {
    maxBuffer: 1 << 28,
    env: { ...process.env, LC_ALL: "C" },
    stdio: ["ignore", "pipe", "pipe"],
  });
}

export interface Seen extends Walked {
  /** Full name to value in hexadecimal. */
  readonly xattrs: Readonly<Record<string, string>>;
}

/** Everything in an image, as the kernel shows it. */
export function readImage(imagePath: string, devicePaths: readonly string[] = []): Map<string, Seen> {
  const walk = [process.execPath, join(import.meta.dirname, "walk.ts"), "/mnt"];
  const lines = runMounted(imagePath, walk, devicePaths);
  const dump = "cd /mnt && getfattr --no-dereference --physical --recursive --dump --match=- --encoding=hex .";
  const attributes = readAttributes(runMounted(imagePath, ["sh", "-c", dump], devicePaths));
  const seen = new Map<string, Seen>();
  for (const line of lines.toString("utf8").trimEnd().split("\n")) {
    const walked = JSON.parse(line) as Walked;
    seen.set(walked.path, { ...walked, xattrs: attributes.get(walked.path) ?? {} });
  }
  return seen;
}

/** What getfattr dumps: `# file: path`, a line per attribute, an empty line; odd bytes as \ooo. */
function readAttributes(dump: Buffer): Map<string, Record<string, string>> {
  const plain = (text: string): string =>
    text.replace(/\\([0-7]{3})/g, (_, octal: string) => String.fromCharCode(Number.parseInt(octal, 8)));
  const found = new Map<string, Record<string, string>>();
  for (const section of dump.toString("latin1").split("\n\n")) {
    const [head = "", ...lines] = section.split("\n");
    if (!head.startsWith("# file: ")) continue;
    const path = plain(head.slice("# file: ".length));
    const attributes: Record<string, string> = {};
    for (const line of lines) {
      const [, name, value = ""] = /^([^=]+)(?:=0x([0-9a-f]*)|=""|=)?$/.exec(line) ?? [];
      if (name !== undefined) attributes[plain(name)] = value;
    }
    found.set(path === "." ? "" : path, attributes);
  }
  return found;
}
