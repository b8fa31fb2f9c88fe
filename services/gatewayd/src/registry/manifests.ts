import { type Clock, ServiceError } from "@unkey/base";
import type { AssetBytes } from "./asset-bytes.ts";
import type { Place } from "./blob-store.ts";
import { isForeignDigest, isSha256, parseSha256, type Sha256, sha256Of } from "./digest.ts";
import { answer, answerBytes, type Exchange } from "./exchange.ts";
import { maxManifestBytes, parseManifest } from "./manifest-document.ts";
import { type ManifestStore, manifestNotFound, refuseMissing } from "./manifest-store.ts";
import { isTag } from "./registry-route.ts";
import { SharedSlots } from "./slots.ts";
import type { UploadService } from "./uploads.ts";

/** Manifests in memory at once; parsed, one takes a multiple of its bytes. */
const maxInMemory = 6;
/** Whoever sends a byte now and then holds its places for a minute each: not all of them. */
const maxInMemoryPerTenant = 2;
/** One push by digest may set so many tags. */
const maxTagParameters = 32;
/** A manifest that takes longer to arrive keeps others waiting. */
const bodyDeadlineMs = 60_000;

export interface ManifestServiceDeps {
  readonly manifests: ManifestStore;
  readonly uploads: UploadService;
  readonly bytes: AssetBytes;
  readonly clock: Clock;
  /** Called when something may be released. */
  readonly released: () => void;
}

/** Manifests and the tags that point to them. */
export class ManifestService {
  readonly #deps: ManifestServiceDeps;
  readonly #slots = new SharedSlots(maxInMemory, maxInMemoryPerTenant);

  constructor(deps: ManifestServiceDeps) {
    this.#deps = deps;
  }

  async pull(exchange: Exchange, place: Place, reference: string): Promise<void> {
    const { manifests, bytes } = this.#deps;
    const manifest = await manifests.find(place, checked(place, reference));
    if (!manifest) throw await this.#unknown(place, reference);
    const { digest, mediaType, assetId, sizeBytes } = manifest;
    const headers = { "docker-content-digest": digest, "content-type": mediaType };
    if (exchange.request.method === "HEAD") answer(exchange, 200, { ...headers, "content-length": sizeBytes });
    else await answerBytes(exchange, 200, headers, bytes.read(exchange, assetId, 0), sizeBytes);
  }

  /** Stores a manifest under a tag or its digest. Answers the digest. */
  async push(exchange: Exchange, place: Place, reference: string): Promise<Sha256> {
    const { manifests, uploads, clock } = this.#deps;
    if (isForeignDigest(reference)) parseSha256(reference);
    const named = checked(place, reference);
    const tags = tagsOf(exchange.query, named);
    using _slot = await this.#slots.take(place.tenantId);
    const bytes = await this.#read(exchange);
    const digest = sha256Of(bytes);
    if (isSha256(named) && named !== digest) {
      throw new ServiceError("DIGEST_INVALID", `the manifest that came is ${digest}, not ${named}`);
    }
    const document = parseManifest(bytes, contentTypeOf(exchange));
    refuseMissing(place, await manifests.missing(place, document)); // before its bytes are stored
    await uploads.store(exchange, place, { digest, bytes }, (blob, uploadId) =>
      manifests.put({ place, document, blob, tags, uploadId, nowMs: clock.nowMs() }),
    );
    if (tags.length > 0 && isSha256(named)) exchange.response.setHeader("oci-tag", tags.join(", "));
    if (document.subject !== "") exchange.response.setHeader("oci-subject", document.subject);
    answer(exchange, 201, {
      location: `/v2/${place.repository}/manifests/${digest}`,
      "docker-content-digest": digest,
    });
    return digest;
  }

  /** Deletes a tag, or a manifest with all its tags. */
  async delete(exchange: Exchange, place: Place, reference: string): Promise<void> {
    const { manifests, clock, released } = this.#deps;
    const named = checked(place, reference);
    if (!(await manifests.hasRepository(place))) throw await this.#unknown(place, reference);
    if (isSha256(named)) await manifests.delete(place, named, clock.nowMs());
    else await manifests.deleteTag(place, named, clock.nowMs());
    released();
    answer(exchange, 202);
  }

  async #read(exchange: Exchange): Promise<Uint8Array> {
    const { request, body } = exchange;
    const timer = setTimeout(() => request.destroy(new Error("the manifest took too long")), bodyDeadlineMs);
    try {
      return await body.whole(
        maxManifestBytes,
        () => new ServiceError("MANIFEST_TOO_LARGE", `the manifest is larger than ${maxManifestBytes} bytes`),
      );
    } finally {
      clearTimeout(timer);
    }
  }

  async #unknown(place: Place, reference: string): Promise<ServiceError> {
    if (await this.#deps.manifests.hasRepository(place)) return manifestNotFound(place.repository, reference);
    return new ServiceError("REPOSITORY_NOT_FOUND", `there is no repository ${place.repository}`);
  }
}

/** A tag or a digest; one of another algorithm is not here. */
function checked({ repository }: Place, reference: string): string {
  if (isTag(reference)) return reference;
  if (isForeignDigest(reference)) throw manifestNotFound(repository, reference);
  if (reference.includes(":")) return parseSha256(reference);
  throw new ServiceError(
    "MANIFEST_INVALID",
    `${JSON.stringify(reference.slice(0, 80))} is neither a tag nor a digest`,
    { nextStep: "Write a tag with letters, digits, dots, dashes and underscores, at most 128 of them." },
  );
}

/** The tags that a push sets: the one in the path, or those of the query of a push by digest (spec.md, end-7b). */
function tagsOf(query: URLSearchParams, named: string): string[] {
  if (!isSha256(named)) return [named];
  const tags = [...new Set(query.getAll("tag"))];
  if (tags.length > maxTagParameters) {
    throw new ServiceError("INVALID_REQUEST", `one push sets at most ${maxTagParameters} tags`, {
      nextStep: "Push the manifest again for the other tags.",
    });
  }
  const bad = tags.find((tag) => !isTag(tag));
  if (bad !== undefined) {
    throw new ServiceError("MANIFEST_INVALID", `${JSON.stringify(bad.slice(0, 80))} is not a tag`);
  }
  return tags;
}

function contentTypeOf({ request }: Exchange): string {
  return (request.headers["content-type"] ?? "").split(";", 1)[0]?.trim().toLowerCase() ?? "";
}
