import { createHash } from "node:crypto";
import { ServiceError } from "@unkey/base";
import { defaultImageLimits, type ImageLimits, parseImageReference } from "@unkey/oci";
import type { BuildSource } from "./build.ts";

/** What becomes of setuid and setgid bits and of file capabilities: kept, taken off, or a reason to refuse the image. */
export type SetuidPolicy = "keep" | "strip" | "refuse";

/** What must be signed before an image is built. Every rule whose `images` match an image must hold. */
export interface SignatureRule {
  /** Patterns of image names, see `matchesImage`; sorted. */
  readonly images: readonly string[];
  /** Public keys in PEM (SubjectPublicKeyInfo). One of them must have signed; sorted. */
  readonly keys: readonly string[];
  /** The manifest's digest must be signed itself. */
  readonly signature: boolean;
  /** An in-toto statement about the manifest must be signed for each of these predicate types (URIs); sorted. */
  readonly attestations: readonly string[];
}

/** What a tenant's images must be like, and what is done to them. Everything in it decides the result of a build. */
export interface BuildPolicy {
  /** Patterns of images that may be built; sorted. */
  readonly images: readonly string[];
  readonly setuid: SetuidPolicy;
  readonly limits: ImageLimits;
  readonly signatures: readonly SignatureRule[];
}

/**
 * Any image, as its author made it. Privileged bits are kept: they act inside the tenant's own VM, whose hypervisor is the
 * border, and images of every distribution depend on them (su, ping, sudo).
 */
export const defaultBuildPolicy: BuildPolicy = {
  images: ["**"],
  setuid: "keep",
  limits: defaultImageLimits,
  signatures: [],
};

/** sha256:<hex> over the policy in canonical JSON (keys sorted). Part of every cache key: another policy builds again. */
export function policyDigest(policy: BuildPolicy): string {
  return `sha256:${createHash("sha256").update(canonical(policy)).digest("hex")}`;
}

/** The policy as a provenance statement shows it: canonical JSON, what `policyDigest` is taken over. */
export function canonical(value: unknown): string {
  if (Array.isArray(value)) return `[${value.map(canonical).join(",")}]`;
  if (typeof value !== "object" || value === null) return JSON.stringify(value);
  const members = Object.entries(value).toSorted(([a], [b]) => (a < b ? -1 : 1));
  return `{${members.map(([key, member]) => `${JSON.stringify(key)}:${canonical(member)}`).join(",")}}`;
}

/**
 * What patterns are compared with: `registry/repository` in full (`docker.io/library/debian`), `pushed/<repository>` for the
 * platform's own registry, `upload` for an archive. A registry's name has a dot, a colon or is localhost: no two collide.
 */
export function policyNameOf(source: BuildSource): string {
  switch (source.kind) {
    case "upload":
      return "upload";
    case "pushed":
      return `pushed/${source.repository}`;
    case "reference": {
      const { registry, repository } = parseImageReference(source.reference);
      return `${registry}/${repository}`;
    }
  }
}

/**
 * `*` stands for any characters but `/`, `**` for any; everything else for itself. Not by a regular expression: a tenant chooses the
 * name, and no name takes longer than its length times the pattern's.
 */
export function matchesImage(pattern: string, name: string): boolean {
  /** Whether the tokens read so far can stand for the first `at` characters. */
  let fits = Array.from({ length: name.length + 1 }, (_, at) => at === 0);
  for (const token of pattern.match(/\*\*|[^]/g) ?? []) {
    const isStar = token === "*" || token === "**";
    const next: boolean[] = [];
    for (const [at, fitsBefore] of fits.entries()) {
      const last = name[at - 1];
      next.push(
        isStar
          ? fitsBefore || (next[at - 1] === true && (token === "**" || last !== "/"))
          : fits[at - 1] === true && last === token,
      );
    }
    fits = next;
  }
  return fits[name.length] === true;
}

/** The rules that an image must satisfy. */
export function signatureRulesFor(policy: BuildPolicy, source: BuildSource): SignatureRule[] {
  const name = policyNameOf(source);
  return policy.signatures.filter(({ images }) => images.some((pattern) => matchesImage(pattern, name)));
}

/** Throws IMAGE_NOT_ALLOWED. */
export function checkImageAllowed(policy: BuildPolicy, source: BuildSource): void {
  const name = policyNameOf(source);
  if (policy.images.some((pattern) => matchesImage(pattern, name))) return;
  const shown = policy.images.slice(0, 8).join(", ") + (policy.images.length > 8 ? ", …" : "");
  throw new ServiceError("IMAGE_NOT_ALLOWED", `the build policy allows ${shown || "no image"}, not ${name}`);
}
