import { type ByteString, printable } from "../byte-string.ts";
import { InvalidInput } from "../invalid-input.ts";
import { isPosixAcl } from "../tar/posix-acl.ts";
import { noXattrs, type TarEntry } from "../tar/tar-entry.ts";
import { checkBytes, type ImageLimits } from "./limits.ts";

const maxNameBytes = 255;
/** Names that the build's log can show; more of them say nothing new. */
const maxDropped = 16;

/**
 * The attributes of an entry that a root filesystem takes, as copies; `dropped` gains the names of the others. Kept is what has
 * the same meaning on every machine: `user.*`, `trusted.*`, file capabilities, POSIX access control lists. Others describe the
 * machine that packed the image, and `trusted.overlay.*` would steer the overlay that a VM's root is. Throws InvalidInput for
 * a value that the kernel would refuse, IMAGE_TOO_LARGE.
 */
export function keptXattrs(
  entry: Pick<TarEntry, "name" | "type" | "xattrs">,
  limits: ImageLimits,
  dropped: Set<ByteString>,
): ReadonlyMap<ByteString, Buffer> {
  if (entry.xattrs.size === 0) return noXattrs;
  const kept = new Map<ByteString, Buffer>();
  for (const name of [...entry.xattrs.keys()].sort()) {
    const value = entry.xattrs.get(name);
    if (value === undefined || !isKept(name, entry.type)) {
      if (dropped.size < maxDropped) dropped.add(name.slice(0, maxNameBytes));
      continue;
    }
    if (name.length > maxNameBytes || name.includes("\0")) {
      throw new InvalidInput(`${printable(entry.name)} has an attribute with a malformed name`);
    }
    if (name === "security.capability" && !isCapability(value)) {
      throw new InvalidInput(`${printable(entry.name)} has a malformed file capability`);
    }
    if (name.startsWith("system.") && !isPosixAcl(value)) {
      throw new InvalidInput(`${printable(entry.name)} has a malformed access control list`);
    }
    kept.set(name, Buffer.from(value));
  }
  checkBytes(() => `the extended attributes of ${printable(entry.name)} are`, xattrBytes(kept), limits.xattrBytes);
  return kept;
}

/** Names and values together. */
export function xattrBytes(xattrs: ReadonlyMap<ByteString, Buffer>): number {
  let bytes = 0;
  for (const [name, value] of xattrs) bytes += name.length + value.length;
  return bytes;
}

/** Where the kernel allows an attribute, and whether its meaning travels. */
function isKept(name: ByteString, type: TarEntry["type"]): boolean {
  const plain = type === "file" || type === "directory";
  if (name.startsWith("user.")) return plain && name.length > "user.".length;
  if (name.startsWith("trusted.")) {
    return type !== "hardlink" && name.length > "trusted.".length && !name.startsWith("trusted.overlay.");
  }
  switch (name) {
    case "security.capability":
      return type === "file";
    case "system.posix_acl_access":
      return type !== "hardlink" && type !== "symlink";
    case "system.posix_acl_default":
      return type === "directory";
    default:
      return false;
  }
}

/** The two revisions that the kernel stores (linux/capability.h, VFS_CAP_REVISION_2 and _3); it refuses other bytes. */
function isCapability(value: Buffer): boolean {
  const revision = value.length >= 4 ? value.readUInt32LE(0) >>> 24 : 0;
  return (revision === 2 && value.length === 20) || (revision === 3 && value.length === 24);
}
