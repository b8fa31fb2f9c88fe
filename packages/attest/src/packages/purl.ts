import type { Distribution } from "./distribution.ts";
import type { DeclaredPackage, Ecosystem } from "./package-list.ts";

/** https://github.com/package-url/purl-spec: the types deb, apk, rpm, npm and pypi. */
export function purlOf(ecosystem: Ecosystem, declared: DeclaredPackage, distribution: Distribution): string {
  const { name, version, architecture = "", epoch = "" } = declared;
  switch (ecosystem) {
    case "npm": {
      const [scope, bare] = name.startsWith("@") ? name.split("/", 2) : [undefined, name];
      return join("npm", scope?.toLowerCase(), (bare ?? "").toLowerCase(), version, {});
    }
    case "pypi":
      return join("pypi", undefined, name.toLowerCase().replaceAll("_", "-"), version, {});
    default: {
      const named = ecosystem === "rpm" ? name : name.toLowerCase();
      const qualifiers = { arch: architecture, distro: distribution.release, epoch };
      return join(ecosystem, distribution.id || undefined, named, version, qualifiers);
    }
  }
}

/** `qualifiers` in order of their names; empty ones are left out. */
function join(
  type: string,
  namespace: string | undefined,
  name: string,
  version: string,
  qualifiers: Readonly<Record<string, string>>,
): string {
  const query = Object.entries(qualifiers)
    .filter(([, value]) => value !== "")
    .map(([key, value]) => `${key}=${encoded(value)}`);
  const path = [type, ...(namespace === undefined ? [] : [encoded(namespace)]), encoded(name)].join("/");
  return `pkg:${path}@${encoded(version)}${query.length > 0 ? `?${query.join("&")}` : ""}`;
}

function encoded(text: string): string {
  return encodeURIComponent(text)
    .replaceAll(/[!'()*]/g, (character) => `%${character.charCodeAt(0).toString(16).toUpperCase()}`)
    .replaceAll("%3A", ":");
}
