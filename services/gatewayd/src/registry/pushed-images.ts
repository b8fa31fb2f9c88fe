import { create } from "@bufbuild/protobuf";
import { type ImageSource, ImageSourceSchema } from "@unkey/api/builder";
import { ServiceError, type TenantId } from "@unkey/base";
import { isSha256 } from "./digest.ts";
import type { ManifestStore } from "./manifest-store.ts";
import { isRepositoryName, isTag } from "./registry-route.ts";

export interface PushedReference {
  readonly repository: string;
  /** A tag, or a sha256 digest. */
  readonly reference: string;
}

/** Finds out which images are the platform's own: those that callers pushed to it. */
export class PushedImages {
  readonly #manifests: ManifestStore;
  readonly #isOwnHost: (host: string) => boolean;

  /** `isOwnHost` knows the gateway by `name[:port]`, as references write it. */
  constructor(deps: { readonly manifests: ManifestStore; readonly isOwnHost: (host: string) => boolean }) {
    this.#manifests = deps.manifests;
    this.#isOwnHost = deps.isOwnHost;
  }

  /**
   * The image by the digest that its tag has now, when it is one that was pushed here; undefined for every other image.
   * A reference to the gateway's own host can mean nothing else, and throws IMAGE_NOT_FOUND when it was not pushed; a
   * name without a host means what was pushed here, once anything was pushed under it, unless a login says that a registry is
   * meant.
   */
  async resolve(
    tenantId: TenantId,
    image: ImageSource | undefined,
    withCredentials: boolean,
  ): Promise<ImageSource | undefined> {
    const { source } = image ?? {};
    if (source?.case === "pushed") {
      const { repository, tagOrDigest } = source.value;
      return this.#pinned(tenantId, { repository, reference: tagOrDigest }, true);
    }
    if (source?.case !== "reference") return undefined;
    const { host, rest } = splitHost(source.value);
    if (host !== undefined) {
      return this.#isOwnHost(host) ? this.#pinned(tenantId, parseLocal(rest), true) : undefined;
    }
    if (withCredentials) return undefined;
    const named = parseLocal(rest);
    // Who has pushed under the name means that, also with a tag that is mistyped or gone: never a stranger's image of the name.
    const isOurs =
      named !== undefined && (await this.#manifests.hasRepository({ tenantId, repository: named.repository }));
    return this.#pinned(tenantId, named, isOurs);
  }

  async #pinned(
    tenantId: TenantId,
    named: PushedReference | undefined,
    mustExist: boolean,
  ): Promise<ImageSource | undefined> {
    const valid = named && isRepositoryName(named.repository) && (isTag(named.reference) || isSha256(named.reference));
    const found = valid
      ? await this.#manifests.find({ tenantId, repository: named.repository }, named.reference)
      : undefined;
    if (!found || !named) {
      if (mustExist) throw notPushed(named);
      return undefined;
    }
    const value = { repository: named.repository, tagOrDigest: found.digest };
    return create(ImageSourceSchema, { source: { case: "pushed", value } });
  }
}

export function notPushed(named: PushedReference | undefined): ServiceError {
  const what = named ? `${named.repository}${separator(named.reference)}${named.reference}` : "this reference";
  return new ServiceError("IMAGE_NOT_FOUND", `${what.slice(0, 300)} was not pushed to the platform`, {
    nextStep: "Push it first: docs/how-to/push-an-image.md; GET /v2/_catalog lists what was pushed.",
  });
}

/** A reference begins with a host when what stands before its first slash looks like one: Docker's own rule. */
function splitHost(reference: string): { readonly host?: string; readonly rest: string } {
  const slash = reference.indexOf("/");
  const first = slash < 0 ? "" : reference.slice(0, slash);
  if (!/[.:]/.test(first) && first !== "localhost") return { rest: reference };
  return { host: first.toLowerCase(), rest: reference.slice(slash + 1) };
}

/** `name[:tag][@digest]`; the digest decides. */
function parseLocal(text: string): PushedReference | undefined {
  const match = /^([^:@]+)(?::([^:@/]+))?(?:@(.+))?$/.exec(text);
  if (!match) return undefined;
  const [, repository = "", tag = "latest", digest] = match;
  return { repository, reference: digest ?? tag };
}

function separator(reference: string): string {
  return reference.includes(":") ? "@" : ":";
}
