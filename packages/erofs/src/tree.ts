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
