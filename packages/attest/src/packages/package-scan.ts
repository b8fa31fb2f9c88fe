import { type Distribution, readOsRelease } from "./distribution.ts";
import {
  type DeclaredPackage,
  type Ecosystem,
  type Package,
  type PackageList,
  UnreadableFile,
  type UnreadFile,
} from "./package-list.ts";
import { purlOf } from "./purl.ts";
import { readRpmBdb } from "./rpm-bdb.ts";
import { isPublicKey, readRpmHeader } from "./rpm-header.ts";
import { readRpmNdb } from "./rpm-ndb.ts";
import { readRpmSqlite } from "./rpm-sqlite.ts";
import { readApkInstalled, readDpkgStatus, readPackageJson, readPythonMetadata } from "./text-databases.ts";

const mib = 2 ** 20;
/** Databases together, and metadata files together: what is held in memory until the tree has been read. */
const maxBytes = { database: 64 * mib, metadata: 48 * mib } as const;
const maxMetadataFileBytes = mib;
const maxOsReleaseBytes = 64 * 1024;
const maxPackages = 50_000;
/** Of all packages together, in characters: the list travels between processes and becomes a document in memory. */
const maxText = 10 * mib;
const maxUnread = 1000;
const maxFieldLength = 256;
const maxLicenseLength = 1024;

interface Source {
  readonly ecosystem: Ecosystem;
  readonly holds: "database" | "metadata";
  readonly path: RegExp;
  readonly read: (bytes: Buffer) => Iterable<DeclaredPackage>;
}

const rpmFolder = "(?:var/lib/rpm|usr/lib/sysimage/rpm|usr/share/rpm)";
const sources: readonly Source[] = [
  { ecosystem: "deb", holds: "database", path: /^var\/lib\/dpkg\/status$/, read: readDpkgStatus },
  {
    ecosystem: "deb",
    holds: "metadata",
    path: /^var\/lib\/dpkg\/status\.d\/(?!.*\.md5sums$)[^/]+$/,
    read: readDpkgStatus,
  },
  { ecosystem: "apk", holds: "database", path: /^(?:usr\/)?lib\/apk\/db\/installed$/, read: readApkInstalled },
  { ecosystem: "rpm", holds: "database", path: new RegExp(`^${rpmFolder}/rpmdb\\.sqlite$`), read: rpms(readRpmSqlite) },
  { ecosystem: "rpm", holds: "database", path: new RegExp(`^${rpmFolder}/Packages\\.db$`), read: rpms(readRpmNdb) },
  { ecosystem: "rpm", holds: "database", path: new RegExp(`^${rpmFolder}/Packages$`), read: rpms(readRpmBdb) },
  {
    ecosystem: "npm",
    holds: "metadata",
    path: /(?:^|\/)node_modules\/(?:@[^/]+\/)?[^/@][^/]*\/package\.json$/,
    read: readPackageJson,
  },
  {
    ecosystem: "pypi",
    holds: "metadata",
    path: /\.dist-info\/METADATA$|\.egg-info\/PKG-INFO$|\.egg-info$/,
    read: readPythonMetadata,
  },
];
/** Last names of paths that any pattern here takes; a tree has few others of them, and most paths need no more than this look. */
const lastNames = new Set([
  "status",
  "installed",
  "rpmdb.sqlite",
  "rpmdb.sqlite-wal",
  "rpmdb.sqlite-journal",
  "Packages.db",
  "Packages",
  "package.json",
  "METADATA",
  "PKG-INFO",
  "os-release",
]);
/** What a database that was not closed keeps beside itself; its content counts, and is not looked at. */
const journalPath = new RegExp(`^${rpmFolder}/rpmdb\\.sqlite-(?:wal|journal)$`);
const osReleasePaths = ["etc/os-release", "usr/lib/os-release"];

/**
 * Finds the packages of one tree: `wants` chooses the files while the tree is walked, `list` reads them. Both are bounded
 * whatever the tree holds; a file beyond a bound is listed as unread. Paths are byte strings (one character per byte) from the
 * root, with or without a leading slash.
 */
export class PackageScan {
  readonly #taken = { database: 0, metadata: 0 };
  readonly #answers = new Map<string, boolean>();
  readonly #unread: UnreadFile[] = [];
  #unreadOmitted = 0;
  #textLength = 0;

  /** True when the content of the file of that name in a directory is to be handed to `list`. The same path again gives the same answer. */
  wants(directory: string, name: string, sizeBytes: number): boolean {
    if (!mayBeAsked(directory, name)) return false;
    const plain = `${directory}/${name}`.replace(/^\.?\//, "");
    const known = this.#answers.get(plain);
    if (known !== undefined) return known;
    const answer = this.#decide(plain, sizeBytes);
    if (answer !== undefined) this.#answers.set(plain, answer);
    return answer ?? false;
  }

  /** Reads the files that were wanted, by path. Never throws for what a file contains. */
  list(files: ReadonlyMap<string, Buffer>): PackageList {
    const contents = new Map([...files].map(([path, bytes]) => [path.replace(/^\.?\//, ""), bytes] as const));
    const distribution = readOsRelease(
      osReleasePaths.map((path) => contents.get(path)).find((bytes) => bytes !== undefined),
    );
    const packages: Package[] = [];
    for (const path of [...contents.keys()].toSorted()) {
      const source = sourceOf(path);
      const bytes = contents.get(path);
      if (source === undefined || bytes === undefined) continue;
      this.#read(source, path, bytes, distribution, packages);
    }
    for (const [path, wanted] of this.#answers) {
      if (wanted && !contents.has(path)) this.#leaveOut(path, "its content was not handed over");
    }
    return {
      packages: packages.toSorted(byIdentity).filter((each, index, sorted) => !isSame(each, sorted[index - 1])),
      unread: this.#unread.toSorted((a, b) => compare(a.path, b.path)),
      unreadOmitted: this.#unreadOmitted,
    };
  }

  /** Undefined for a file that has nothing to do with packages. */
  #decide(path: string, sizeBytes: number): boolean | undefined {
    if (osReleasePaths.includes(path)) return sizeBytes <= maxOsReleaseBytes ? true : undefined;
    if (journalPath.test(path) && sizeBytes > 0) {
      this.#leaveOut(path, "the database beside it was not closed: its last changes are missing");
      return false;
    }
    const source = sourceOf(path);
    if (source === undefined) return undefined;
    const tooLong = source.holds === "metadata" && sizeBytes > maxMetadataFileBytes;
    if (tooLong || this.#taken[source.holds] + sizeBytes > maxBytes[source.holds]) {
      this.#leaveOut(path, tooLong ? `it has ${sizeBytes} bytes` : "there is too much of this kind");
      return false;
    }
    this.#taken[source.holds] += sizeBytes;
    return true;
  }

  #read(source: Source, path: string, bytes: Buffer, distribution: Distribution, packages: Package[]): void {
    const { ecosystem, read } = source;
    let refused = 0;
    try {
      for (const declared of read(bytes)) {
        if (!isUsable(declared)) {
          refused++;
          continue;
        }
        if (packages.length >= maxPackages) throw new UnreadableFile(`there are more than ${maxPackages} packages`);
        const { name, version, architecture = "", license = "" } = declared;
        const found: Package = {
          ecosystem,
          name,
          version,
          architecture,
          license: isClean(license, maxLicenseLength) ? license : "",
          purl: purlOf(ecosystem, declared, distribution),
          foundIn: Buffer.from(path, "latin1").toString("utf8"),
        };
        this.#textLength += Object.values(found).reduce((sum: number, text: string) => sum + text.length, 0);
        if (this.#textLength > maxText) throw new UnreadableFile("the package list would become too long");
        packages.push(found);
      }
    } catch (error) {
      if (!(error instanceof UnreadableFile)) throw error;
      this.#leaveOut(path, error.message);
    }
    if (refused > 0) this.#leaveOut(path, `${refused} of its packages have no usable name or version`);
  }

  #leaveOut(path: string, problem: string): void {
    if (this.#unread.length >= maxUnread) this.#unreadOmitted++;
    else this.#unread.push({ path: Buffer.from(path, "latin1").toString("utf8"), problem });
  }
}

function mayBeAsked(directory: string, name: string): boolean {
  return lastNames.has(name) || name.endsWith(".egg-info") || directory.endsWith("/status.d");
}

function sourceOf(path: string): Source | undefined {
  return sources.find((source) => source.path.test(path));
}

function rpms(headers: (bytes: Buffer) => Iterable<Buffer>) {
  return function* (bytes: Buffer): Generator<DeclaredPackage> {
    for (const header of headers(bytes)) {
      const declared = readRpmHeader(header);
      if (!isPublicKey(declared)) yield declared;
    }
  };
}

function isUsable({ name, version, architecture = "", epoch = "" }: DeclaredPackage): boolean {
  if (name === "" || version === "") return false;
  return [name, version, architecture, epoch].every((text) => isClean(text, maxFieldLength));
}

/** No control characters, and nothing that cannot be encoded. */
function isClean(text: string, maxLength: number): boolean {
  return text.length <= maxLength && text.isWellFormed() && !/\p{Cc}/u.test(text);
}

function byIdentity(a: Package, b: Package): number {
  return (
    compare(a.ecosystem, b.ecosystem) ||
    compare(a.name, b.name) ||
    compare(a.version, b.version) ||
    compare(a.architecture, b.architecture) ||
    compare(a.foundIn, b.foundIn)
  );
}

/** A database that names a package twice tells of it once. */
function isSame(a: Package, b: Package | undefined): boolean {
  return b !== undefined && a.purl === b.purl && a.foundIn === b.foundIn;
}

function compare(a: string, b: string): number {
  return a < b ? -1 : a > b ? 1 : 0;
}
