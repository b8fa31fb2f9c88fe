/** One entry of an initramfs; owner is always root, and no entry carries a time. */
export interface CpioEntry {
  /** Relative, without a leading slash; parents come first. */
  readonly path: string;
  /** File type and permission bits as in stat(2). */
  readonly mode: number;
  /** A file's content, or a symbolic link's target. */
  readonly content?: Uint8Array;
  /** Major and minor number of a device node. */
  readonly device?: readonly [major: number, minor: number];
}

export const fileType = { directory: 0o040000, file: 0o100000, symlink: 0o120000, characterDevice: 0o020000 } as const;

/**
 * The "newc" archive that the Linux kernel unpacks as its initramfs
 * (https://docs.kernel.org/driver-api/early-userspace/buffer-format.html). The same entries give the same bytes.
 */
export function writeCpio(entries: readonly CpioEntry[]): Buffer {
  const parts: Buffer[] = [];
  for (const [index, entry] of entries.entries()) parts.push(...record(entry, index + 1));
  parts.push(...record({ path: "TRAILER!!!", mode: 0 }, 0));
  return Buffer.concat(parts);
}

function record(entry: CpioEntry, inode: number): Buffer[] {
  const content = Buffer.from(entry.content ?? []);
  const name = Buffer.from(`${entry.path}\0`);
  const [major, minor] = entry.device ?? [0, 0];
  const linkCount = (entry.mode & 0o170000) === fileType.directory ? 2 : 1;
  // ino, mode, uid, gid, nlink, mtime, filesize, devmajor, devminor, rdevmajor, rdevminor, namesize, check
  const fields = [inode, entry.mode, 0, 0, linkCount, 0, content.length, 0, 0, major, minor, name.length, 0];
  const header = `070701${fields.map((field) => field.toString(16).padStart(8, "0")).join("")}`;
  return [Buffer.from(header), name, padding(header.length + name.length), content, padding(content.length)];
}

function padding(length: number): Buffer {
  return Buffer.alloc((4 - (length % 4)) % 4);
}
