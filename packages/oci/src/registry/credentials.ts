import type { ImageReference } from "../reference.ts";
import type { RegistryCredentials } from "./token.ts";

/**
 * The login for an image: that of the longest key which is its registry (`registry.example:5000`) or starts its name at whole
 * components (`registry.example/team`). Nothing is shortened inside a component, and one registry's login goes to no other.
 */
export function credentialsFor(
  reference: ImageReference,
  logins: ReadonlyMap<string, RegistryCredentials>,
): RegistryCredentials | undefined {
  const components = [reference.registry, ...reference.repository.split("/")];
  for (let length = components.length; length > 0; length--) {
    const found = logins.get(components.slice(0, length).join("/"));
    if (found !== undefined) return found;
  }
  return undefined;
}
