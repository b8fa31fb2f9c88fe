import { type Clock, ServiceError } from "@unkey/base";
import type { AssetBytes } from "./asset-bytes.ts";
import { type BlobStore, blobNotFound, type Place } from "./blob-store.ts";
import { byteRange } from "./byte-range.ts";
import { isForeignDigest, parseSha256, type Sha256 } from "./digest.ts";
import { answer, answerBytes, type Exchange } from "./exchange.ts";
import { SharedSlots } from "./slots.ts";

/**
 * Ranges from within a blob that a tenant may have under way, the others wait: whatever is sent, the blob is read from its start to be
 * verified, so that a byte may cost gigabytes.
 */
const maxInnerRangesPerTenant = 4;

export interface BlobServiceDeps {
  readonly blobs: BlobStore;
  readonly bytes: AssetBytes;
  readonly clock: Clock;
  readonly graceMs: number;
  /** Called when something may be released. */
  readonly released: () => void;
}

/** Layers and configs as they are pulled and deleted; how they come is the uploads' part. */
export class BlobService {
  readonly #deps: BlobServiceDeps;
  readonly #innerRanges = new SharedSlots(Number.POSITIVE_INFINITY, maxInnerRangesPerTenant);

  constructor(deps: BlobServiceDeps) {
    this.#deps = deps;
  }

  async pull(exchange: Exchange, place: Place, reference: string): Promise<void> {
    const { blobs, bytes, clock, graceMs } = this.#deps;
    const digest = pulledDigest(place, reference);
    const blob = await blobs.find(place, digest);
    if (!blob) throw blobNotFound(place.repository, digest);
    const headers = { "docker-content-digest": digest, "content-type": "application/octet-stream" };
    const { request, response } = exchange;
    if (request.method === "HEAD") {
      const nowMs = clock.nowMs();
      await blobs.touch(place, digest, nowMs, nowMs - graceMs / 2);
      answer(exchange, 200, { ...headers, "accept-ranges": "bytes", "content-length": blob.sizeBytes });
      return;
    }
    const range = byteRange(request.headers.range, blob.sizeBytes);
    if (range === "unsatisfiable") {
      response.setHeader("content-range", `bytes */${blob.sizeBytes}`);
      throw new ServiceError("BLOB_RANGE_UNSATISFIABLE", `the blob is ${blob.sizeBytes} bytes long`);
    }
    const { start, end } = range ?? { start: 0, end: blob.sizeBytes };
    using _slot = start === 0 ? undefined : await this.#innerRanges.take(place.tenantId);
    await answerBytes(
      exchange,
      range ? 206 : 200,
      {
        ...headers,
        "accept-ranges": "bytes",
        ...(range ? { "content-range": `bytes ${start}-${end - 1}/${blob.sizeBytes}` } : {}),
      },
      bytes.read(exchange, blob.assetId, start),
      end - start,
    );
  }

  /** DELETE of a blob. */
  async delete(exchange: Exchange, place: Place, reference: string): Promise<void> {
    const { blobs, released } = this.#deps;
    await blobs.unlink(place, pulledDigest(place, reference));
    released();
    answer(exchange, 202);
  }
}

/** A digest that cannot be stored here is one that is not here. */
function pulledDigest({ repository }: Place, text: string): Sha256 {
  if (isForeignDigest(text)) throw blobNotFound(repository, text);
  return parseSha256(text);
}
