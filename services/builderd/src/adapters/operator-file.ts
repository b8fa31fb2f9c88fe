import { type BigIntStats, closeSync, constants, fstatSync, openSync, readFileSync, statSync } from "node:fs";
import { formatBytes, mib } from "@unkey/base";
import type { Logger } from "@unkey/daemon";

const maxFileBytes = mib;

export interface OperatorFileOptions<T> {
  readonly path: string;
  /** In the log and in errors: "the build policy". */
  readonly name: string;
  /** Makes a value of the file's text; `read` gives the text of a further file, which is watched as well. */
  readonly parse: (text: string, read: (path: string) => string) => T;
  /** Refuses files that others can read or own. */
  readonly isPrivate?: boolean;
  readonly log: Logger;
}

/**
 * A file that the operator keeps, read again whenever it or a file that it names has changed. When it has become wrong the value
 * of the last right one stays, and each problem is logged once. At the start there is no last one: it throws what is wrong.
 */
export class OperatorFile<T> {
  readonly #options: OperatorFileOptions<T>;
  #value: T;
  #problem: Error | undefined;
  /** Of the files as they were read last, right or wrong. */
  #versions: readonly FileVersion[];

  constructor(options: OperatorFileOptions<T>) {
    this.#options = options;
    const { value, problem, versions } = readFiles(options);
    if (problem !== undefined) throw problem;
    this.#value = value;
    this.#versions = versions;
    options.log.info(`${options.name} was read`, { path: options.path });
  }

  /** Of the last right file. */
  get value(): T {
    this.#refresh();
    return this.#value;
  }

  /** What is wrong with the file as it is now. */
  get problem(): Error | undefined {
    this.#refresh();
    return this.#problem;
  }

  /** Throws while the file is not the one that `value` is of. */
  check(): void {
    if (this.problem !== undefined) throw this.problem;
  }

  #refresh(): void {
    if (this.#versions.every(isCurrent)) return;
    const { path, name, log } = this.#options;
    const { value, problem, versions } = readFiles(this.#options);
    if (problem === undefined) {
      this.#value = value;
      log.info(`${name} was read`, { path });
    } else if (problem.message !== this.#problem?.message) {
      log.error(`${name} was refused; the last right one stays`, { path, error: problem });
    }
    this.#problem = problem;
    this.#versions = versions;
  }
}

type Reading<T> = { readonly versions: readonly FileVersion[] } & (
  | { readonly value: T; readonly problem?: undefined }
  | { readonly value?: undefined; readonly problem: Error }
);

interface FileVersion {
  readonly path: string;
  /** Undefined when the file could not be read: it is tried again each time. */
  version: string | undefined;
}

function readFiles<T>({ path, name, parse, isPrivate = false }: OperatorFileOptions<T>): Reading<T> {
  const versions: FileVersion[] = [];
  const read = (file: string): string => {
    const entry: FileVersion = { path: file, version: undefined };
    versions.push(entry);
    const { text, version } = readSmallFile(file, isPrivate);
    entry.version = version;
    return text;
  };
  try {
    return { versions, value: parse(read(path), read) };
  } catch (error) {
    // Without the cause: its message is in this one's, and the log would tell the mistakes again.
    const said = error instanceof Error ? error.message : String(error);
    return { versions, problem: new Error(`${name} ${path}: ${said}`) };
  }
}

function readSmallFile(path: string, isPrivate: boolean): { text: string; version: string } {
  // Not waiting, in case it is a pipe.
  const file = openSync(path, constants.O_RDONLY | constants.O_NONBLOCK);
  try {
    const stat = fstatSync(file, { bigint: true });
    if (!stat.isFile()) throw new Error(`${path} is not a regular file`);
    if (isPrivate) {
      if ((stat.mode & 0o077n) !== 0n) throw new Error(`${path} can be read by others; run chmod 600 on it`);
      const own = BigInt(process.geteuid?.() ?? 0);
      if (stat.uid !== own && stat.uid !== 0n) throw new Error(`${path} belongs to another user`);
    }
    if (stat.size > maxFileBytes) throw new Error(`${path} is over ${formatBytes(maxFileBytes)}`);
    return { text: readFileSync(file, "utf8"), version: versionOf(stat) };
  } finally {
    closeSync(file);
  }
}

function isCurrent({ path, version }: FileVersion): boolean {
  try {
    return versionOf(statSync(path, { bigint: true })) === version;
  } catch {
    return false; // reading it says why
  }
}

/** A change of mode or owner shows in ctime. */
function versionOf({ dev, ino, size, mtimeNs, ctimeNs }: BigIntStats): string {
  return `${dev} ${ino} ${size} ${mtimeNs} ${ctimeNs}`;
}
