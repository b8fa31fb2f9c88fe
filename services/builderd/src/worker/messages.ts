import type { PackageList } from "@unkey/attest";
import { type ErrorReason, errorCatalogue, ServiceError } from "@unkey/base";
import type { Digest, ImageLimits } from "@unkey/oci";
import type { Compression } from "@unkey/oci/rootfs";
import type { SetuidPolicy } from "../domain/policy.ts";
import { FrameError } from "./frames.ts";

/** Bytes of one layer arrive on standard input, to their end; `out` becomes its layer directory. */
export interface UnpackJob {
  readonly kind: "unpack";
  readonly digest: Digest;
  readonly diffId: Digest;
  readonly sizeBytes: number;
  readonly compression: Compression;
  readonly limits: ImageLimits;
  readonly outDirectory: string;
}

/** Layers follow, lowest first, as they come; then what is to be made of them. */
export interface AssembleJob {
  readonly kind: "assemble";
  readonly layerCount: number;
  readonly limits: ImageLimits;
}

/** A complete layer directory. */
export interface LayerStep {
  readonly kind: "layer";
  readonly digest: Digest;
  readonly diffId: Digest;
  readonly directory: string;
}

export interface WriteStep {
  readonly kind: "write";
  /** For each layer: whether its content is a device of the image. */
  readonly devices: readonly boolean[];
  readonly imagePath: string;
  readonly format: "erofs" | "ext4";
  readonly identity: string;
  readonly setuid: SetuidPolicy;
  readonly scratchDirectory: string;
}

/** Follows `write` when all devices are counted, which may take longer than the writing: their digests in hex digits. */
export interface DigestsStep {
  readonly kind: "digests";
  readonly digests: readonly (string | null)[];
}

/** What a worker is told first, and once. */
export type Job = UnpackJob | AssembleJob;

/** What a worker says of the image that it has made. Its digest is counted by whoever stores it. */
export interface AssembledRootfs {
  readonly sizeBytes: number;
  readonly passwd: string;
  readonly group: string;
  readonly droppedXattrs: readonly string[];
  readonly packages: PackageList;
}

/** What a worker says: progress, then one of the other two, then nothing. */
export type Answer =
  | { readonly kind: "progress"; readonly done: number; readonly total: number }
  | { readonly kind: "done"; readonly rootfs: AssembledRootfs | undefined }
  | { readonly kind: "failed"; readonly error: ServiceError };

type Package = PackageList["packages"][number];
type UnreadFile = PackageList["unread"][number];

/** Bounds what builderd holds of a worker's words: the account files and the packages of the largest images fit. */
export const maxAnswerBytes = 48 * 2 ** 20;
const maxTextLength = 2 ** 20;
const maxMessageLength = 1000;
const maxPackages = 100_000;

export function failureMessage(error: unknown): unknown {
  const told =
    error instanceof ServiceError ? error : new ServiceError("INTERNAL", "something broke inside the worker");
  return {
    kind: "failed",
    reason: told.reason,
    message: told.message.slice(0, maxMessageLength),
    metadata: told.metadata,
  };
}

/** Checks what a worker has sent; throws FrameError when it is none of the answers that there are. */
export function parseAnswer(message: unknown): Answer {
  const kind = member(message, "kind");
  switch (kind) {
    case "progress":
      return { kind, done: count(message, "done"), total: count(message, "total") };
    case "done": {
      const rootfs = member(message, "rootfs");
      return { kind, rootfs: rootfs === null ? undefined : parseRootfs(rootfs) };
    }
    case "failed":
      return { kind, error: parseError(message) };
    default:
      throw new FrameError("an answer is of no known kind");
  }
}

function parseRootfs(message: unknown): AssembledRootfs {
  return {
    sizeBytes: count(message, "sizeBytes"),
    passwd: text(message, "passwd", maxTextLength),
    group: text(message, "group", maxTextLength),
    droppedXattrs: list(message, "droppedXattrs", 64, (item) => line(item, "droppedXattrs", 300)),
    packages: parsePackages(member(message, "packages")),
  };
}

function parsePackages(message: unknown): PackageList {
  return {
    packages: list(message, "packages", maxPackages, (item): Package => {
      const ecosystem = member(item, "ecosystem");
      if (!isEcosystem(ecosystem)) throw new FrameError("ecosystem is unknown");
      const part = (name: string, maxLength: number): string => line(member(item, name), name, maxLength);
      return {
        ecosystem,
        name: part("name", 256),
        version: part("version", 256),
        architecture: part("architecture", 256),
        license: part("license", 1024),
        purl: part("purl", 4096),
        foundIn: text(item, "foundIn", 4096),
      };
    }),
    unread: list(message, "unread", 1000, (item): UnreadFile => {
      return { path: text(item, "path", 4096), problem: text(item, "problem", 1000) };
    }),
    unreadOmitted: count(message, "unreadOmitted"),
  };
}

function isEcosystem(value: unknown): value is Package["ecosystem"] {
  return value === "deb" || value === "apk" || value === "rpm" || value === "npm" || value === "pypi";
}

/** The reasons that are a worker's to give; another one would be a lie about the rest of the platform. */
function isWorkersReason(reason: string): reason is ErrorReason {
  return Object.hasOwn(errorCatalogue, reason) && /^(IMAGE|ROOTFS)_|^(INTERNAL|LAYER_CACHE_DAMAGED)$/.test(reason);
}

function parseError(message: unknown): ServiceError {
  const reason = text(message, "reason", 64);
  if (!isWorkersReason(reason)) throw new FrameError("a failure has a reason that is not the worker's to give");
  const metadata = member(message, "metadata");
  const entries = typeof metadata === "object" && metadata !== null ? Object.entries(metadata).slice(0, 8) : [];
  return new ServiceError(reason, line(member(message, "message"), "message", maxMessageLength), {
    metadata: Object.fromEntries(entries.map(([name, value]) => [line(name, "metadata", 64), line(value, name, 256)])),
  });
}

function member(message: unknown, name: string): unknown {
  if (typeof message !== "object" || message === null || !Object.hasOwn(message, name)) {
    throw new FrameError(`${name} is missing`);
  }
  return (message as Record<string, unknown>)[name];
}

function text(message: unknown, name: string, maxLength: number): string {
  const value = member(message, name);
  if (typeof value !== "string" || value.length > maxLength || !value.isWellFormed()) {
    throw new FrameError(`${name} is not a text of at most ${maxLength} characters`);
  }
  return value;
}

/** A text for a log or a message: without control characters. */
function line(value: unknown, name: string, maxLength: number): string {
  if (typeof value !== "string" || value.length > maxLength || !value.isWellFormed() || /\p{Cc}/u.test(value)) {
    throw new FrameError(`${name} is not a line of at most ${maxLength} characters`);
  }
  return value;
}

function count(message: unknown, name: string): number {
  const value = member(message, name);
  if (typeof value !== "number" || !Number.isSafeInteger(value) || value < 0)
    throw new FrameError(`${name} is no count`);
  return value;
}

function list<T>(message: unknown, name: string, maxLength: number, parse: (item: unknown) => T): T[] {
  const value = member(message, name);
  if (!Array.isArray(value) || value.length > maxLength)
    throw new FrameError(`${name} is no list of at most ${maxLength}`);
  return value.map((item: unknown) => parse(item));
}
