export type Ecosystem = "deb" | "apk" | "rpm" | "npm" | "pypi";

/** A package as its database or metadata file tells of it. Plain values: a list travels between processes as JSON. */
export interface Package {
  readonly ecosystem: Ecosystem;
  readonly name: string;
  readonly version: string;
  /** As the ecosystem writes it; empty where it has none. */
  readonly architecture: string;
  /** As the file declares it; empty when it does not. */
  readonly license: string;
  /** https://github.com/package-url/purl-spec */
  readonly purl: string;
  /** Path of the file that told, from the root, without a leading slash. */
  readonly foundIn: string;
}

/** A file that was found and could not be used, or not wholly: packages are missing from the list, and the list says so. */
export interface UnreadFile {
  readonly path: string;
  readonly problem: string;
}

/** What a tree declares as installed. The same files give the same list. */
export interface PackageList {
  /** By ecosystem, name, version, architecture, file. */
  readonly packages: readonly Package[];
  /** By path. */
  readonly unread: readonly UnreadFile[];
  /** Files left out of `unread` because there were too many. */
  readonly unreadOmitted: number;
}

/** What a reader of one file finds, before it is checked. */
export interface DeclaredPackage {
  readonly name: string;
  readonly version: string;
  readonly architecture?: string;
  readonly license?: string;
  readonly epoch?: string;
}

/** A file is not what its name says; the message is shown as the problem. */
export class UnreadableFile extends Error {
  override readonly name = "UnreadableFile";
}
