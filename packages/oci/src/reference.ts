import { ServiceError } from "@unkey/base";
import { type Digest, isDigest } from "./digest.ts";

/** Where an image is: `registry/repository`, then a tag, a digest or both (the digest decides). */
export interface ImageReference {
  /** Host with optional port, as people write it: `docker.io`, `localhost:5000`, `[::1]:5000`. */
  readonly registry: string;
  readonly repository: string;
  readonly tag: string | undefined;
  readonly digest: Digest | undefined;
}

const defaultRegistry = "docker.io";
const defaultNamespace = "library";
const defaultTag = "latest";

// https://github.com/distribution/reference/blob/main/reference.go holds the grammar; 255 bounds the name there too.
const nameComponent = /^[a-z0-9]+(?:(?:\.|_|__|-+)[a-z0-9]+)*$/;
const tagPattern = /^\w[\w.-]{0,127}$/;
const domainLabel = "(?:[a-zA-Z0-9]|[a-zA-Z0-9][a-zA-Z0-9-]*[a-zA-Z0-9])";
const registryPattern = new RegExp(`^(?:${domainLabel}(?:\\.${domainLabel})*|\\[[0-9a-fA-F:]+\\])(?::([0-9]{1,5}))?$`);
const maxNameLength = 255;

/**
 * Reads an image reference by Docker's conventions: the first component is a registry when it has a dot or a colon or is
 * `localhost`; a bare name means docker.io/library; no tag and no digest means `latest`. Throws IMAGE_REFERENCE_INVALID.
 */
export function parseImageReference(text: string): ImageReference {
  const fail = (why: string): never => {
    throw new ServiceError("IMAGE_REFERENCE_INVALID", `image ${JSON.stringify(text.slice(0, 300))}: ${why}`);
  };
  if (text === "") return fail("the reference is empty");
  if (text.includes("://")) return fail("write it without a scheme such as https://");
  if (/\s/.test(text)) return fail("it contains white space");

  let rest = text;
  let digest: Digest | undefined;
  const at = rest.indexOf("@");
  if (at >= 0) {
    const digestText = rest.slice(at + 1);
    if (!isDigest(digestText)) return fail(`"${digestText.slice(0, 80)}" is not a sha256 or sha512 digest`);
    digest = digestText;
    rest = rest.slice(0, at);
  }

  let tag: string | undefined;
  const colon = rest.lastIndexOf(":");
  if (colon > rest.lastIndexOf("/")) {
    tag = rest.slice(colon + 1);
    rest = rest.slice(0, colon);
    if (!tagPattern.test(tag)) return fail(`"${tag.slice(0, 140)}" is not a tag`);
  }

  let registry = defaultRegistry;
  let repository = rest;
  const slash = rest.indexOf("/");
  const first = rest.slice(0, Math.max(slash, 0));
  if (slash >= 0 && (/[.:]/.test(first) || first === "localhost")) {
    repository = rest.slice(slash + 1);
    const port = registryPattern.exec(first);
    if (port === null) return fail(`"${first}" is not a registry host`);
    if (port[1] !== undefined && (Number(port[1]) < 1 || Number(port[1]) > 65_535)) {
      return fail(`"${port[1]}" is not a port`);
    }
    if (!URL.canParse(`https://${first}`)) return fail(`"${first}" is not a registry host`);
    registry = normaliseRegistry(first);
  }
  if (registry === defaultRegistry && repository !== "" && !repository.includes("/")) {
    repository = `${defaultNamespace}/${repository}`;
  }

  if (repository === "") return fail("the image name is missing");
  if (registry.length + 1 + repository.length > maxNameLength)
    return fail(`the name is over ${maxNameLength} characters`);
  if (/[A-Z]/.test(repository)) return fail("repository names are lower case");
  const bad = repository.split("/").find((component) => !nameComponent.test(component));
  if (bad !== undefined) return fail(`"${bad}" is not a repository name component`);

  return { registry, repository, tag: tag ?? (digest === undefined ? defaultTag : undefined), digest };
}

/** The full form: registry, repository, tag and digest where there are any. */
export function formatImageReference(reference: ImageReference): string {
  const tag = reference.tag === undefined ? "" : `:${reference.tag}`;
  const digest = reference.digest === undefined ? "" : `@${reference.digest}`;
  return `${reference.registry}/${reference.repository}${tag}${digest}`;
}

/**
 * A registry has one name, whatever ways there are to write its host and port: policies and logins go by it. What cannot be written
 * without its port, because it would be a part of a repository's name, keeps it.
 */
function normaliseRegistry(host: string): string {
  const { host: plain } = new URL(`https://${host}`); // lower case, addresses in one form, no default port
  const name = /[.:]/.test(plain) || plain === "localhost" ? plain : `${plain}:443`;
  return name === "index.docker.io" || name === "registry-1.docker.io" ? defaultRegistry : name;
}
