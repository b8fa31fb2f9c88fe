import { ServiceError } from "@unkey/base";

/** What a path below `/v2/` is about; names and references are not checked yet. */
export type RegistryResource =
  | { readonly kind: "base" }
  | { readonly kind: "catalog" }
  | { readonly kind: "uploads"; readonly repository: string }
  | { readonly kind: "upload"; readonly repository: string; readonly uploadId: string }
  | { readonly kind: "blob"; readonly repository: string; readonly digest: string }
  | { readonly kind: "manifest"; readonly repository: string; readonly reference: string }
  | { readonly kind: "tags"; readonly repository: string }
  | { readonly kind: "referrers"; readonly repository: string; readonly digest: string };

export type RegistryVerb = "GET" | "HEAD" | "POST" | "PATCH" | "PUT" | "DELETE";

/** https://github.com/opencontainers/distribution-spec/blob/v1.1.1/spec.md#pulling-manifests */
const component = "[a-z0-9]+(?:(?:\\.|_|__|-+)[a-z0-9]+)*";
const repositoryPattern = new RegExp(`^${component}(?:/${component})*$`);
const tagPattern = /^[a-zA-Z0-9_][a-zA-Z0-9._-]{0,127}$/;
const maxRepositoryLength = 255;

/** The methods of each resource (spec.md#endpoints). */
export const verbsOf: Readonly<Record<RegistryResource["kind"], readonly RegistryVerb[]>> = {
  base: ["GET", "HEAD"],
  catalog: ["GET"],
  uploads: ["POST"],
  upload: ["GET", "PATCH", "PUT", "DELETE"],
  blob: ["GET", "HEAD", "DELETE"],
  manifest: ["GET", "HEAD", "PUT", "DELETE"],
  tags: ["GET"],
  referrers: ["GET"],
};

export function isRegistryPath(path: string): boolean {
  return path === "/v2" || path.startsWith("/v2/");
}

export function isRepositoryName(text: string): boolean {
  return text.length <= maxRepositoryLength && repositoryPattern.test(text);
}

export function isTag(text: string): boolean {
  return tagPattern.test(text);
}

/** Finds what a path means: a repository's name may hold slashes, so paths are read from their end. */
export function routeOf(encodedPath: string): RegistryResource {
  const path = decoded(encodedPath);
  if (path === "/v2" || path === "/v2/") return { kind: "base" };
  if (path === "/v2/_catalog") return { kind: "catalog" };
  const match = (pattern: RegExp) => pattern.exec(path)?.slice(1);
  const upload = match(/^\/v2\/(.+)\/blobs\/uploads(?:\/([^/]*))?$/);
  if (upload) {
    const [repository = "", uploadId = ""] = upload;
    return uploadId === ""
      ? { kind: "uploads", repository: checked(repository) }
      : { kind: "upload", repository: checked(repository), uploadId };
  }
  const named = match(/^\/v2\/(.+)\/(blobs|manifests|referrers)\/([^/]+)$/);
  if (named) {
    const [name = "", kind, reference = ""] = named;
    const repository = checked(name);
    if (kind === "blobs") return { kind: "blob", repository, digest: reference };
    if (kind === "referrers") return { kind: "referrers", repository, digest: reference };
    return { kind: "manifest", repository, reference };
  }
  const tags = match(/^\/v2\/(.+)\/tags\/list$/);
  if (tags) return { kind: "tags", repository: checked(tags[0] ?? "") };
  throw new ServiceError("ROUTE_UNKNOWN", `the registry has no path ${JSON.stringify(path.slice(0, 200))}`, {
    nextStep: "Use a path of the OCI distribution specification, such as /v2/<repository>/tags/list.",
  });
}

function checked(repository: string): string {
  if (isRepositoryName(repository)) return repository;
  throw new ServiceError(
    "REPOSITORY_NAME_INVALID",
    `${JSON.stringify(repository.slice(0, 80))} is no name of a repository`,
  );
}

function decoded(path: string): string {
  try {
    return decodeURIComponent(path);
  } catch {
    throw new ServiceError("ROUTE_UNKNOWN", "the path is not percent-encoded UTF-8");
  }
}
