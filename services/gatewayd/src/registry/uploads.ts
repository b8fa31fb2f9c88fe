import { type Clock, isServiceError, KeyedTurns, newId, ServiceError } from "@unkey/base";
import { type AssetBytes, finishTimeoutMs, type PendingBytes } from "./asset-bytes.ts";
import { type BlobStore, type Place, quotaExceeded, type StoredBlob } from "./blob-store.ts";
import { chunkRange } from "./byte-range.ts";
import { isSha256, parseSha256, type Sha256 } from "./digest.ts";
import { type AnswerHeaders, answer, type Exchange } from "./exchange.ts";
import { isRepositoryName } from "./registry-route.ts";
import { Bounded, unlessEmpty } from "./request-body.ts";
import { SharedSlots } from "./slots.ts";
import { type UploadRow, type UploadStore, uploadNotFound } from "./upload-store.ts";

/** Uploads that a tenant may have open; abandoned ones count until they are swept. */
const maxOpenUploads = 256;
/** Fewer than assetmanagerd takes at once, so that clients wait here instead of being refused there. */
const maxTransfers = 14;
const maxTransfersPerTenant = 6;
/** A blob that is being released is gone within a moment. */
const releaseAttempts = 100;
const releasePauseMs = 100;

export interface UploadServiceDeps {
  readonly blobs: BlobStore;
  readonly uploads: UploadStore;
  readonly bytes: AssetBytes;
  readonly clock: Clock;
  readonly maxBlobBytes: number;
  readonly quotaBytes: number;
  /** Starts a sweep, which finishes releases that a crash interrupted. */
  readonly sweep: () => void;
}

/** How blobs come: whole, in parts, or out of another repository (spec.md#pushing-blobs). */
export class UploadService {
  readonly #deps: UploadServiceDeps;
  readonly #turns = new KeyedTurns();
  readonly #transfers = new SharedSlots(maxTransfers, maxTransfersPerTenant);

  constructor(deps: UploadServiceDeps) {
    this.#deps = deps;
  }

  /** POST: mounts a blob, takes a whole one, or begins an upload. True when it pushed something. */
  async begin(exchange: Exchange, place: Place): Promise<boolean> {
    const { uploads, clock } = this.#deps;
    const { query } = exchange;
    const algorithm = query.get("digest-algorithm");
    if (algorithm !== null && algorithm !== "sha256") parseSha256(`${algorithm}:`);
    const mount = query.get("mount");
    if (mount !== null && (await this.#mount(exchange, place, mount, query.get("from") ?? undefined))) return true;
    const whole = mount === null ? query.get("digest") : null;
    const digest = whole === null ? undefined : parseSha256(whole);
    const uploadId = newId("upload", clock.nowMs());
    await uploads.begin(place, uploadId, clock.nowMs(), maxOpenUploads);
    if (digest !== undefined) return this.#finish(exchange, place, uploadId, digest);
    answer(exchange, 202, { ...uploadHeaders(place, uploadId, 0) });
    return false;
  }

  /** GET: how far an upload is. */
  async status(exchange: Exchange, place: Place, uploadId: string): Promise<void> {
    const upload = await this.#deps.uploads.get(place, uploadId);
    const { receivedBytes } = upload.assetId === "" ? { receivedBytes: 0 } : await this.#pending(exchange, upload);
    answer(exchange, 204, uploadHeaders(place, uploadId, receivedBytes));
  }

  /** PATCH: adds a chunk. */
  async append(exchange: Exchange, place: Place, uploadId: string): Promise<void> {
    using _turn = await this.#turns.take(uploadId);
    const upload = await this.#deps.uploads.get(place, uploadId);
    const { receivedBytes } = await this.#receive(exchange, upload);
    answer(exchange, 202, uploadHeaders(place, uploadId, receivedBytes));
  }

  /** PUT: takes the last chunk, if there is one, and makes the upload a blob. True when it became one. */
  async finish(exchange: Exchange, place: Place, uploadId: string): Promise<boolean> {
    const text = exchange.query.get("digest");
    if (text === null) throw new ServiceError("DIGEST_INVALID", "the query parameter digest is missing");
    return this.#finish(exchange, place, uploadId, parseSha256(text));
  }

  /** DELETE of an upload. */
  async cancel(exchange: Exchange, place: Place, uploadId: string): Promise<void> {
    using _turn = await this.#turns.take(uploadId);
    const upload = await this.#deps.uploads.get(place, uploadId);
    await this.#discard(exchange, upload);
    answer(exchange, 204);
  }

  /**
   * Stores bytes that are in memory and announces them first; `commit` is what makes them a blob. An equal blob that is
   * there already is used as it is: the digest is ours.
   */
  async store(
    exchange: Exchange,
    place: Place,
    content: { readonly digest: Sha256; readonly bytes: Uint8Array },
    commit: (blob: StoredBlob, uploadId: string) => Promise<void>,
  ): Promise<void> {
    const { blobs, uploads, bytes, clock } = this.#deps;
    const { digest } = content;
    const uploadId = newId("upload", clock.nowMs());
    await this.#announce(exchange, place, uploadId, digest, content.bytes.byteLength);
    const known = await blobs.stored(place.tenantId, digest);
    if (known) {
      await commit(known, "");
      return;
    }
    await uploads.begin(place, uploadId, clock.nowMs(), maxOpenUploads);
    const { assetId } = await this.#open(exchange, await uploads.get(place, uploadId));
    await bytes.append(exchange.lasting, assetId, 0, sliced(content.bytes));
    await commit(await bytes.finish(exchange.lasting, assetId, digest, content.bytes.byteLength), uploadId);
  }

  async #mount(exchange: Exchange, place: Place, mount: string, from: string | undefined): Promise<boolean> {
    const { blobs, clock } = this.#deps;
    if (!isSha256(mount) || (from !== undefined && !isRepositoryName(from))) return false;
    if (!(await blobs.mount(place, from, mount, clock.nowMs()))) return false;
    answer(exchange, 201, blobHeaders(place, mount));
    return true;
  }

  async #finish(exchange: Exchange, place: Place, uploadId: string, digest: Sha256): Promise<boolean> {
    const { blobs, uploads, bytes, clock } = this.#deps;
    using _turn = await this.#turns.take(uploadId);
    const upload = await uploads.get(place, uploadId);
    const { assetId, receivedBytes } = await this.#receive(exchange, upload);
    if (exchange.body.brokenOff) return false;
    await this.#announce(exchange, place, uploadId, digest, receivedBytes);
    let blob: StoredBlob;
    try {
      blob = await bytes.finish(exchange.lasting, assetId, digest, receivedBytes);
    } catch (error) {
      if (!isServiceError(error, "ASSET_DIGEST_MISMATCH") && !isServiceError(error, "ASSET_SIZE_MISMATCH")) throw error;
      await this.#discard(exchange, { ...upload, assetId });
      throw new ServiceError("DIGEST_INVALID", `the ${receivedBytes} bytes that came are not ${digest}`, {
        cause: error,
      });
    }
    await blobs.commit(place, blob, uploadId, clock.nowMs());
    answer(exchange, 201, blobHeaders(place, digest));
    return true;
  }

  /** Takes the body, which must begin where the bytes end that are there. Answers what is there then. */
  async #receive(exchange: Exchange, upload: UploadRow): Promise<PendingBytes> {
    const { uploads, bytes, clock } = this.#deps;
    const { body } = exchange;
    const pending = await this.#open(exchange, upload);
    const offset = pending.receivedBytes;
    this.#checkRange(exchange, upload, offset);
    const room = await this.#roomFor(exchange, upload, offset);
    using _slot = await this.#transfers.take(upload.tenantId);
    const chunks = await unlessEmpty(body.chunks());
    if (chunks === undefined) return pending;
    const fitting = new Bounded(chunks, room.bytes);
    let now: PendingBytes;
    try {
      now = await bytes.append(exchange.lasting, pending.assetId, offset, fitting.chunks());
    } catch (error) {
      if (!isServiceError(error, "UPLOAD_OFFSET_MISMATCH")) throw error;
      const { receivedBytes } = await this.#pending(exchange, { ...upload, assetId: pending.assetId });
      throw outOfOrder(exchange, upload, receivedBytes);
    }
    if (fitting.exceeded) {
      await this.#discard(exchange, { ...upload, assetId: pending.assetId });
      throw room.refusal;
    }
    await uploads.received(upload, now.receivedBytes, clock.nowMs());
    return now;
  }

  /** How many more bytes may come, and why no more. */
  async #roomFor(exchange: Exchange, upload: UploadRow, offset: number): Promise<Room> {
    const { blobs, maxBlobBytes, quotaBytes } = this.#deps;
    const usedBytes = await blobs.usedBytes(upload.tenantId);
    const byLimit = maxBlobBytes - offset;
    const byQuota = quotaBytes - usedBytes;
    const room =
      byLimit <= byQuota
        ? { bytes: byLimit, refusal: new ServiceError("BLOB_TOO_LARGE", `a blob has at most ${maxBlobBytes} bytes`) }
        : { bytes: byQuota, refusal: quotaExceeded(usedBytes, quotaBytes) };
    const declared = exchange.body.declaredBytes ?? 0;
    if (declared > Math.max(0, room.bytes)) throw room.refusal;
    return room;
  }

  #checkRange(exchange: Exchange, upload: UploadRow, receivedBytes: number): void {
    const header = exchange.request.headers["content-range"];
    if (header === undefined) return;
    const range = chunkRange(header);
    if (!range) {
      throw new ServiceError(
        "BLOB_SIZE_MISMATCH",
        `Content-Range: ${JSON.stringify(header.slice(0, 64))} is not <first>-<last>`,
      );
    }
    if (range.start !== receivedBytes) throw outOfOrder(exchange, upload, receivedBytes);
    const declared = exchange.body.declaredBytes;
    if (declared !== undefined && declared !== range.end - range.start) {
      throw new ServiceError(
        "BLOB_SIZE_MISMATCH",
        `Content-Range names ${range.end - range.start} bytes, Content-Length ${declared}`,
      );
    }
  }

  /** The bytes of an upload, which begin with its first request. */
  async #open(exchange: Exchange, upload: UploadRow): Promise<PendingBytes> {
    const { uploads, bytes } = this.#deps;
    if (upload.assetId !== "") return this.#pending(exchange, upload);
    const pending = await bytes.begin(exchange.lasting, upload.uploadId);
    await uploads.setAsset(upload, pending.assetId);
    return pending;
  }

  async #pending(exchange: Exchange, upload: UploadRow): Promise<PendingBytes> {
    const { uploads, bytes } = this.#deps;
    const { repository, uploadId } = upload;
    const { assetId } = upload.assetId === "" ? await uploads.get(upload, uploadId) : upload;
    const pending = assetId === "" ? undefined : await bytes.find(exchange, assetId);
    if (pending) return pending;
    throw uploadNotFound(repository, uploadId);
  }

  async #discard(exchange: Exchange, upload: UploadRow): Promise<void> {
    const { uploads, bytes } = this.#deps;
    if (upload.assetId !== "") await bytes.cancel(exchange.lasting, upload.assetId);
    await uploads.remove(upload);
  }

  async #announce(
    exchange: Exchange,
    { tenantId }: Place,
    uploadId: string,
    digest: Sha256,
    sizeBytes: number,
  ): Promise<void> {
    const { blobs, clock, quotaBytes } = this.#deps;
    for (let attempt = 0; attempt < releaseAttempts; attempt++) {
      const nowMs = clock.nowMs();
      const heldUntilMs = nowMs + 2 * finishTimeoutMs;
      const announced = await blobs.announce({
        tenantId,
        digest,
        sizeBytes,
        quotaBytes,
        uploadId,
        nowMs,
        heldUntilMs,
      });
      if (announced) return;
      if (attempt === 0) this.#deps.sweep();
      await clock.sleep(releasePauseMs, exchange.signal);
    }
    throw new ServiceError("DEPENDENCY_UNAVAILABLE", "an earlier copy of this blob is still being deleted");
  }
}

interface Room {
  readonly bytes: number;
  readonly refusal: ServiceError;
}

async function* sliced(bytes: Uint8Array): AsyncGenerator<Uint8Array> {
  const chunkBytes = 512 * 1024;
  for (let from = 0; from < bytes.byteLength; from += chunkBytes) yield bytes.subarray(from, from + chunkBytes);
}

function outOfOrder(exchange: Exchange, upload: UploadRow, receivedBytes: number): ServiceError {
  const headers = uploadHeaders(upload, upload.uploadId, receivedBytes);
  for (const [name, value] of Object.entries(headers)) exchange.response.setHeader(name, value);
  return new ServiceError(
    "BLOB_UPLOAD_OUT_OF_ORDER",
    `the upload has ${receivedBytes} bytes; the chunk begins elsewhere`,
  );
}

/** `0-0` stands for nothing and for one byte alike; deployed registries write it so. */
function uploadHeaders({ repository }: Place, uploadId: string, receivedBytes: number): AnswerHeaders {
  return {
    location: `/v2/${repository}/blobs/uploads/${uploadId}`,
    range: `0-${Math.max(0, receivedBytes - 1)}`,
    "docker-upload-uuid": uploadId,
  };
}

function blobHeaders({ repository }: Place, digest: Sha256): AnswerHeaders {
  return { location: `/v2/${repository}/blobs/${digest}`, "docker-content-digest": digest };
}
