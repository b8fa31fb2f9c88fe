/*
 * What an image is made from: a tree of metadata. Names, link targets and attribute names are byte strings, one character
 * (U+0000 to U+00FF) per byte. A node under several names is a hard link.
 */

export interface ErofsMetadata {
  /** The twelve permission bits. */
  readonly mode: number;
  readonly uid: number;
  readonly gid: number;
  /** Nanoseconds since 1970; seconds must fit a signed 64-bit integer. */
  readonly mtimeNs: bigint;
  /** By full name: `user.…`, `trusted.…`, `security.…`, `system.posix_acl_access`, `system.posix_acl_default`. */
  readonly xattrs: ReadonlyMap<string, Buffer>;
}

/** A range of a file's bytes. */
export interface ErofsRange {
  readonly offset: number;
  readonly length: number;
}

export interface ErofsFile {
  readonly kind: "file";
  readonly metadata: ErofsMetadata;
  readonly sizeBytes: number;
  /** Ranges that hold data, ascending; the rest reads as zeros. Absent: all of it is data. */
  readonly data?: readonly ErofsRange[];
  /**
   * Where its blocks are when they are not in the image: in a device from one of the device's blocks on. That is all of it but an
   * inlined tail (`maxInlineTailBytes`), with zeros behind its end in the last block. Not for a file with `data`.
   */
  readonly place?: ErofsPlace | undefined;
}

export interface ErofsPlace {
  /** Index in the image's devices. */
  readonly device: number;
  readonly block: number;
}

/** A further device that an image's files have blocks in; whoever mounts the image attaches it. */
export interface ErofsDevice {
  /** SHA-256 of the device's bytes, in hexadecimal digits. */
  readonly digest: string;
  readonly blockCount: number;
}

/** One of an image that is to be written; its digest may still be counted meanwhile. */
export interface ErofsNewDevice extends Omit<ErofsDevice, "digest"> {
  readonly digest: ErofsDevice["digest"] | Promise<ErofsDevice["digest"]>;
}

export interface ErofsSymlink {
  readonly kind: "symlink";
  readonly metadata: ErofsMetadata;
  readonly target: string;
}

export interface ErofsSpecial {
  readonly kind: "char" | "block" | "fifo";
  readonly metadata: ErofsMetadata;
  readonly deviceMajor: number;
  readonly deviceMinor: number;
}

export interface ErofsDirectory {
  readonly kind: "directory";
  readonly metadata: ErofsMetadata;
  readonly children: ReadonlyMap<string, { readonly node: ErofsNode }>;
}

export type ErofsNode = ErofsFile | ErofsSymlink | ErofsSpecial | ErofsDirectory;
