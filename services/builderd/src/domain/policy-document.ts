import { InvalidAttestation, readVerificationKeys } from "@unkey/attest";
import { gib, isId, isServiceError, kib, parseByteSize, type TenantId } from "@unkey/base";
import { type ImageLimits, parseImageReference } from "@unkey/oci";
import { type BuildPolicy, defaultBuildPolicy, type SetuidPolicy, type SignatureRule } from "./policy.ts";
import { type BuildQuota, defaultBuildQuota } from "./quota.ts";

/** What holds for one tenant, or for those that are not named. */
export interface Terms {
  readonly policy: BuildPolicy;
  readonly quota: BuildQuota;
}

/** The operator's file: docs/how-to/build-policy.md describes it. */
export interface PolicyDocument {
  readonly platform: Terms;
  readonly tenants: ReadonlyMap<TenantId, Terms>;
}

export const defaultPolicyDocument: PolicyDocument = {
  platform: { policy: defaultBuildPolicy, quota: defaultBuildQuota },
  tenants: new Map(),
};

/** Every mistake of a policy document at once, each beginning with its field. */
export class PolicyMistakes extends Error {
  readonly mistakes: readonly string[];

  constructor(mistakes: readonly string[]) {
    super(mistakes.join("; "));
    this.name = "PolicyMistakes";
    this.mistakes = mistakes;
  }
}

const maxPatterns = 256;
const maxKeys = 32;
const setuidPolicies: readonly SetuidPolicy[] = ["keep", "strip", "refuse"];
const patternText = /^[a-z0-9*][a-z0-9*._:/[\]-]{0,254}$/;
const predicateType = /^[a-z][a-z0-9+.-]*:[!-~]{1,255}$/;
const count = { min: 0, max: 1_000_000 };

/** Reads a document strictly: a field that is unknown, malformed or out of bounds is a mistake. Throws PolicyMistakes. */
export function parsePolicyDocument(text: string): PolicyDocument {
  const mistakes: string[] = [];
  const document = new Fields(parseJson(text), "the policy", mistakes);
  const platform = readTerms(document.object("default"), defaultPolicyDocument.platform);
  const byTenant = document.object("tenants");
  const tenants = new Map<TenantId, Terms>();
  for (const name of byTenant.names()) {
    const terms = readTerms(byTenant.object(name), platform);
    if (isId("tenant", name)) tenants.set(name, terms);
    else byTenant.mistake(name, "is no tenant's id");
  }
  document.done();
  if (mistakes.length > 0) throw new PolicyMistakes(mistakes);
  return { platform, tenants };
}

function readTerms(from: Fields, above: Terms): Terms {
  const limits = from.object("limits");
  const quota = from.object("quota");
  const { policy, quota: aboveQuota } = above;
  const terms = {
    policy: {
      images: from.patterns("images") ?? policy.images,
      setuid: from.oneOf("setuid", setuidPolicies) ?? policy.setuid,
      limits: readLimits(limits, policy.limits),
      signatures: from.list("signatures", maxPatterns)?.map(readRule) ?? policy.signatures,
    },
    quota: {
      concurrent: quota.int("concurrent", { min: 1, max: 64 }) ?? aboveQuota.concurrent,
      buildsPerDay: quota.int("buildsPerDay", count) ?? aboveQuota.buildsPerDay,
      bytesPerDay: quota.bytes("bytesPerDay", { min: 0, max: 1024 * 1024 * gib }) ?? aboveQuota.bytesPerDay,
      minutesPerDay: quota.int("minutesPerDay", count) ?? aboveQuota.minutesPerDay,
    },
  };
  limits.done();
  quota.done();
  from.done();
  return terms;
}

function readLimits(from: Fields, above: ImageLimits): ImageLimits {
  const size = { min: kib, max: 1024 * gib };
  return {
    ...above,
    compressedBytes: from.bytes("compressed", size) ?? above.compressedBytes,
    uncompressedBytes: from.bytes("uncompressed", size) ?? above.uncompressedBytes,
    fileBytes: from.bytes("file", size) ?? above.fileBytes,
    entries: from.int("entries", { min: 1, max: 4_000_000 }) ?? above.entries,
  };
}

function readRule(from: Fields): SignatureRule {
  const rule = {
    images: from.patterns("images") ?? from.required("images", []),
    keys: from.strings("keys", maxKeys, (key) => publicKeyProblem(key)) ?? from.required("keys", []),
    signature: from.boolean("signature") ?? false,
    attestations:
      from.strings("attestations", maxKeys, (type) =>
        predicateType.test(type) ? "" : "is no predicate type (a URI)",
      ) ?? [],
  };
  if (rule.keys.length === 0) from.mistake("keys", "names no key: nothing could satisfy the rule");
  if (!rule.signature && rule.attestations.length === 0) {
    from.mistake("signature", "is false and attestations is empty: the rule asks for nothing");
  }
  from.done();
  return rule;
}

/** A pattern that no image's name can match is a mistake too: a rule for signatures would ask for none. */
function patternProblem(pattern: string): string {
  if (!patternText.test(pattern)) return 'is no pattern of image names such as "ghcr.io/acme/**"';
  const never = 'matches no image: names are in full, such as "docker.io/library/debian" or "ghcr.io/acme/app"';
  const [host = "", ...path] = pattern.split("/");
  if (host.includes("*") || host === "pushed" || pattern === "upload") return "";
  if (path.length === 0 || !(/[.:]/.test(host) || host === "localhost")) return never;
  const rest = path.join("/");
  const isShort = host === "docker.io" && path.length === 1 && !rest.includes("**");
  return isShort || !isRegistry(host) ? never : "";
}

/** Whether a registry's name is written as the names of images have it. */
function isRegistry(host: string): boolean {
  try {
    return parseImageReference(`${host}/x/x`).registry === host;
  } catch (error) {
    if (isServiceError(error)) return false;
    throw error;
  }
}

function publicKeyProblem(pem: string): string {
  try {
    readVerificationKeys(pem);
    return "";
  } catch (error) {
    if (error instanceof InvalidAttestation) return error.message;
    throw error;
  }
}

function parseJson(text: string): unknown {
  try {
    return JSON.parse(text);
  } catch (cause) {
    throw new PolicyMistakes([`the policy is not JSON: ${cause instanceof Error ? cause.message : String(cause)}`]);
  }
}

interface Bounds {
  readonly min: number;
  readonly max: number;
}

/** One object of the document. Absent fields read as undefined; `done` tells of those that nobody asked for. */
class Fields {
  readonly #values: Readonly<Record<string, unknown>>;
  readonly #path: string;
  readonly #mistakes: string[];
  readonly #known = new Set<string>();

  constructor(value: unknown, path: string, mistakes: string[]) {
    const isObject = typeof value === "object" && value !== null && !Array.isArray(value);
    if (!isObject) mistakes.push(`${path}: is no object`);
    this.#values = isObject ? (value as Record<string, unknown>) : {};
    this.#path = path;
    this.#mistakes = mistakes;
  }

  names(): string[] {
    return Object.keys(this.#values);
  }

  mistake(name: string, problem: string): void {
    this.#mistakes.push(`${this.#at(name)}: ${problem}`);
  }

  required<T>(name: string, placeholder: T): T {
    if (!Object.hasOwn(this.#values, name)) this.mistake(name, "is missing");
    return placeholder;
  }

  /** An absent object has no fields. */
  object(name: string): Fields {
    const value = this.#get(name);
    return new Fields(value === undefined ? {} : value, this.#at(name), this.#mistakes);
  }

  int(name: string, bounds: Bounds): number | undefined {
    return this.#read(name, (value) => {
      if (typeof value !== "number" || !Number.isSafeInteger(value)) return "is no whole number";
      return value < bounds.min || value > bounds.max ? `is not between ${bounds.min} and ${bounds.max}` : { value };
    });
  }

  /** A number of bytes, or text such as "16GiB". */
  bytes(name: string, bounds: Bounds): number | undefined {
    return this.#read(name, (given) => {
      const value = typeof given === "string" ? sizeOf(given) : given;
      if (typeof value !== "number" || !Number.isSafeInteger(value)) return 'is no size; write for example "16GiB"';
      return value < bounds.min || value > bounds.max
        ? `is not between ${bounds.min} and ${bounds.max} bytes`
        : { value };
    });
  }

  boolean(name: string): boolean | undefined {
    return this.#read(name, (value) => (typeof value === "boolean" ? { value } : "is neither true nor false"));
  }

  oneOf<T extends string>(name: string, values: readonly T[]): T | undefined {
    return this.#read(name, (given) => {
      const value = values.find((each) => each === given);
      return value === undefined ? `is none of ${values.join(", ")}` : { value };
    });
  }

  patterns(name: string): string[] | undefined {
    return this.strings(name, maxPatterns, patternProblem);
  }

  /** Sorted and without repetitions, because their order means nothing. */
  strings(name: string, max: number, problemOf: (text: string) => string): string[] | undefined {
    const items = this.#array(name, max);
    const texts = items?.map((item, at) => {
      const problem = typeof item === "string" ? problemOf(item) : "is no text";
      if (problem !== "") this.mistake(`${name}[${at}]`, problem);
      return typeof item === "string" ? item : "";
    });
    return texts && [...new Set(texts)].toSorted();
  }

  list(name: string, max: number): Fields[] | undefined {
    return this.#array(name, max)?.map((item, at) => new Fields(item, `${this.#at(name)}[${at}]`, this.#mistakes));
  }

  done(): void {
    for (const name of this.names()) {
      if (!this.#known.has(name)) {
        this.mistake(name, `is unknown; known here are ${[...this.#known].toSorted().join(", ")}`);
      }
    }
  }

  #array(name: string, max: number): readonly unknown[] | undefined {
    return this.#read(name, (value) => {
      if (!Array.isArray(value)) return "is no list";
      return value.length > max ? `has more than ${max} items` : { value: value as readonly unknown[] };
    });
  }

  #read<T>(name: string, parse: (value: unknown) => { readonly value: T } | string): T | undefined {
    const given = this.#get(name);
    if (given === undefined) return undefined;
    const parsed = parse(given);
    if (typeof parsed !== "string") return parsed.value;
    this.mistake(name, parsed);
    return undefined;
  }

  #get(name: string): unknown {
    this.#known.add(name);
    return Object.hasOwn(this.#values, name) ? this.#values[name] : undefined;
  }

  #at(name: string): string {
    return this.#path === "the policy" ? name : `${this.#path}.${name}`;
  }
}

function sizeOf(text: string): number | undefined {
  try {
    return parseByteSize(text, "");
  } catch {
    return undefined;
  }
}
