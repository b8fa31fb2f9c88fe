import { ServiceError } from "@unkey/base";
import type { Place } from "./blob-store.ts";
import { isForeignDigest, parseSha256 } from "./digest.ts";
import { answerJson, type Exchange } from "./exchange.ts";
import { ociIndexType } from "./manifest-document.ts";
import type { ManifestStore } from "./manifest-store.ts";
import type { ReferrerRow, ReferrerStore } from "./referrer-store.ts";

const maxPage = 1000;
/** A list of referrers is a manifest to its reader, and no larger than one may be. */
const maxReferrersBytes = 4 * 1024 * 1024;

/** Lists of what was pushed: tags, referrers and repositories, in pages. */
export class DiscoveryService {
  readonly #manifests: ManifestStore;
  readonly #referrers: ReferrerStore;

  constructor(deps: { readonly manifests: ManifestStore; readonly referrers: ReferrerStore }) {
    this.#manifests = deps.manifests;
    this.#referrers = deps.referrers;
  }

  async tags(exchange: Exchange, place: Place): Promise<void> {
    const { repository } = place;
    if (!(await this.#manifests.hasRepository(place))) {
      throw new ServiceError("REPOSITORY_NOT_FOUND", `there is no repository ${repository}`);
    }
    await page(exchange, `/v2/${repository}/tags/list`, {
      list: (last, limit) => this.#manifests.tags(place, last, limit),
      show: (tags) => ({ name: repository, tags }),
    });
  }

  async repositories(exchange: Exchange): Promise<void> {
    const { tenantId } = exchange.acting;
    await page(exchange, "/v2/_catalog", {
      list: (last, limit) => this.#manifests.repositories(tenantId, last, limit),
      show: (repositories) => ({ repositories }),
    });
  }

  /** An index of the manifests that name a subject; whether that exists does not matter. */
  async referrers(exchange: Exchange, place: Place, digest: string): Promise<void> {
    const subject = isForeignDigest(digest) ? digest : parseSha256(digest);
    const artifactType = exchange.query.get("artifactType") ?? "";
    const last = exchange.query.get("last") ?? "";
    const wanted = { subject, artifactType, last, limit: maxPage, maxBytes: maxReferrersBytes };
    const { rows, more } = await this.#referrers.list(place, wanted);
    const next = more ? rows.at(-1)?.digest : undefined;
    const query = new URLSearchParams({ ...(artifactType === "" ? {} : { artifactType }), last: next ?? "" });
    answerJson(
      exchange,
      ociIndexType,
      { schemaVersion: 2, mediaType: ociIndexType, manifests: rows.map(descriptorOf) },
      {
        ...(artifactType === "" ? {} : { "oci-filters-applied": "artifactType" }),
        ...(next === undefined ? {} : linkTo(`/v2/${place.repository}/referrers/${subject}`, query)),
      },
    );
  }
}

interface Listing {
  readonly list: (last: string, limit: number) => Promise<string[]>;
  readonly show: (names: readonly string[]) => unknown;
}

/** One page after `last` with at most `n` names; a Link header leads to the next one. */
async function page(exchange: Exchange, path: string, { list, show }: Listing): Promise<void> {
  const asked = exchange.query.get("n");
  if (asked !== null && !/^\d{1,9}$/.test(asked)) {
    throw new ServiceError("INVALID_REQUEST", "the query parameter n is not a whole number");
  }
  const limit = Math.min(asked === null ? maxPage : Number(asked), maxPage);
  if (limit === 0) {
    answerJson(exchange, "application/json", show([]));
    return;
  }
  const names = await list(exchange.query.get("last") ?? "", limit + 1);
  const shown = names.slice(0, limit);
  const more = names.length > limit;
  const query = new URLSearchParams({ n: String(limit), last: shown.at(-1) ?? "" });
  answerJson(exchange, "application/json", show(shown), more ? linkTo(path, query) : {});
}

/** https://www.rfc-editor.org/rfc/rfc5988 */
function linkTo(path: string, query: URLSearchParams): Record<string, string> {
  return { link: `<${path}?${query.toString()}>; rel="next"` };
}

function descriptorOf({ digest, mediaType, sizeBytes, artifactType, annotations }: ReferrerRow) {
  return {
    mediaType,
    digest,
    size: sizeBytes,
    ...(artifactType === "" ? {} : { artifactType }),
    ...(Object.keys(annotations).length === 0 ? {} : { annotations }),
  };
}
