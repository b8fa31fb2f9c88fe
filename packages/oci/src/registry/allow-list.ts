import { ServiceError } from "@unkey/base";
import type { ImageReference } from "../reference.ts";

/**
 * Throws REGISTRY_NOT_ALLOWED unless one of `patterns` fits the image's `registry/repository` (`docker.io/library/debian`); without
 * patterns every registry is allowed. `*` stands for any characters but `/`, `**` for any; a pattern without `/` is a
 * registry's host, with all of its repositories.
 */
export function checkRegistryAllowed(reference: ImageReference, patterns: readonly string[]): void {
  const { registry, repository } = reference;
  if (patterns.length === 0 || patterns.some((pattern) => fits(pattern, registry, `${registry}/${repository}`))) return;
  const shown = patterns.slice(0, 8).join(", ") + (patterns.length > 8 ? ", …" : "");
  throw new ServiceError("REGISTRY_NOT_ALLOWED", `images come from ${shown} here, not from ${registry}/${repository}`);
}

function fits(pattern: string, registry: string, name: string): boolean {
  return globMatches(pattern, pattern.includes("/") ? name : registry);
}

/** Two positions instead of a regular expression: no pattern takes longer than its length times the name's. */
function globMatches(pattern: string, name: string): boolean {
  const tokens = pattern.match(/\*\*|[^]/g) ?? [];
  let reached = new Set([0]);
  const skipStars = (at: number): number[] => {
    const ends = [at];
    while (tokens[at] === "*" || tokens[at] === "**") ends.push(++at);
    return ends;
  };
  reached = new Set([...reached].flatMap(skipStars));
  for (const character of name) {
    const next = new Set<number>();
    for (const at of reached) {
      const token = tokens[at];
      if (token === "**" || (token === "*" && character !== "/")) for (const end of skipStars(at)) next.add(end);
      else if (token === character && token !== "*") for (const end of skipStars(at + 1)) next.add(end);
    }
    reached = next;
  }
  return reached.has(tokens.length);
}
