import { createHash } from "node:crypto";
import { type AssetId, type Clock, isServiceError, ServiceError } from "@unkey/base";
import type { Logger, Metrics } from "@unkey/daemon";
import { proveContent, until } from "./chunks.ts";
import type { Asset, AssetDeclaration, AssetDescription, Digest, Owner, Quota } from "./domain/asset.ts";
import type { AssetCatalog, IncomingFiles, UploadCatalog } from "./ports.ts";
import type { Removal } from "./removal.ts";
import { RunningDigests } from "./running-digests.ts";
import type { StoredBlobs } from "./stored-blobs.ts";
import { UploadTurns } from "./upload-turns.ts";

export interface UploadsDeps {
  readonly assets: AssetCatalog;
  readonly uploads: UploadCatalog;
  readonly incoming: IncomingFiles;
  readonly stored: StoredBlobs;
  readonly removal: Removal;
  readonly clock: Clock;
  readonly log: Logger;
  readonly metrics: Metrics;
  readonly quotaOf: (owner: Owner) => Quota;
  readonly maxAssetBytes: number;
  /** An upload that nobody adds to for so long is given up. */
  readonly uploadLifetimeMs: number;
}

export interface UploadAddress {
  readonly owner: Owner;
  readonly id: AssetId;
}

/** Bytes counted against the quota, and made durable, at a time. */
const stepBytes = 64 * 1024 * 1024;

/**
 * Uploads: an asset in state uploading, a row, whose bytes lie in a file beside the store. Bytes are durable before the row
 * says so, and the row is what a resumption and the quota go by. An upload in one stream is the same three steps in one
 * call; it has no key, so nobody resumes it, and it is given up when it fails.
 */
export class Uploads {
  readonly #deps: UploadsDeps;
  readonly #digests = new RunningDigests();
  readonly #turns: UploadTurns;

  constructor(deps: UploadsDeps) {
    this.#deps = deps;
    this.#turns = new UploadTurns(deps.metrics);
  }

  async upload(declaration: AssetDeclaration, chunks: AsyncIterable<Uint8Array>, signal: AbortSignal): Promise<Asset> {
    const { assets, uploads, stored, clock, quotaOf } = this.#deps;
    const { owner, digest, sizeBytes } = declaration;
    this.#mustBeAllowed(sizeBytes);
    // Content that is there is not written again, but its sender must still prove to have it.
    if (await stored.holds(digest, sizeBytes, signal)) {
      await this.#turns.inStream(() => proveContent(declaration, chunks, signal));
      return stored.lock.run(digest, async () => {
        if (!(await stored.holds(digest, sizeBytes, signal))) {
          throw new ServiceError("ABORTED", "the stored bytes were collected during the upload");
        }
        return assets.add(declaration, quotaOf(owner), clock.nowMs());
      });
    }
    const wish = { ...declaration, key: "", reserveBytes: sizeBytes, partIds: [] };
    const { id } = await uploads.begin(wish, quotaOf(owner), clock.nowMs());
    try {
      await this.append({ owner, id, offset: 0, declaredBytes: sizeBytes }, chunks, signal);
      return await this.finish({ owner, id, expected: digest, sizeBytes }, signal);
    } catch (error) {
      await this.#discard({ owner, id });
      throw error;
    }
  }

  begin(description: AssetDescription, key: string, partIds: readonly AssetId[] = []): Promise<Asset> {
    const { uploads, clock, quotaOf } = this.#deps;
    const wish = { ...description, key, reserveBytes: 0, partIds };
    return uploads.begin(wish, quotaOf(description.owner), clock.nowMs());
  }

  /** Adds `chunks` at `offset`. What arrived is kept and counted also when they break off. */
  append(
    { owner, id, offset, declaredBytes }: UploadAddress & { readonly offset: number; readonly declaredBytes?: number },
    chunks: AsyncIterable<Uint8Array>,
    signal: AbortSignal,
  ): Promise<Asset> {
    const { uploads, incoming, clock, quotaOf } = this.#deps;
    return this.#turns.inStream(() =>
      this.#turns.alone(id, signal, async (joined) => {
        const upload = await this.#uploading(owner, id);
        if (upload.receivedBytes !== offset) throw offsetMismatch(upload.receivedBytes);
        let reserved = declaredBytes ?? offset;
        let received = offset;
        await using file = await incoming.open(id, offset).catch((error: unknown) => this.#noteLoss(upload, error));
        const digest = this.#digests.take(id, offset);
        try {
          if (declaredBytes !== undefined) await this.#mustHaveRoom(declaredBytes, joined);
          for await (const chunk of until(joined, chunks)) {
            if (declaredBytes !== undefined && received + chunk.length > declaredBytes) {
              throw new ServiceError("ASSET_SIZE_MISMATCH", `more than the declared ${declaredBytes} bytes arrived`);
            }
            while (received + chunk.length > reserved) {
              this.#mustBeAllowed(received + chunk.length);
              await file.sync();
              await uploads.note(owner, id, received, reserved, clock.nowMs());
              reserved = await this.#reserve({ owner, id }, received, chunk.length, quotaOf(owner), joined);
            }
            await file.write(chunk);
            digest?.update(chunk);
            received += chunk.length;
          }
        } finally {
          await file.sync();
          await uploads.note(owner, id, received, declaredBytes ?? received, clock.nowMs());
          if (digest !== undefined) this.#digests.put(id, received, digest);
        }
        return { ...upload, receivedBytes: received };
      }),
    );
  }

  /**
   * Takes a file of this host as all of the upload's bytes; its sender must not change it any more. Taken before, it is not
   * taken again. Throws ASSET_SOURCE_REFUSED.
   */
  adopt(
    { owner, id, sourcePath }: UploadAddress & { readonly sourcePath: string },
    signal: AbortSignal,
  ): Promise<Asset> {
    const { uploads, incoming, clock, quotaOf } = this.#deps;
    return this.#turns.alone(id, signal, async () => {
      const upload = await this.#uploading(owner, id);
      if (upload.receivedBytes !== 0) throw offsetMismatch(upload.receivedBytes);
      const hash = createHash("sha256");
      const receivedBytes = await incoming.adopt(id, sourcePath, hash, async (bytes) => {
        this.#mustBeAllowed(bytes);
        await uploads.reserve(owner, id, bytes, quotaOf(owner));
      });
      await uploads.note(owner, id, receivedBytes, receivedBytes, clock.nowMs());
      this.#digests.put(id, receivedBytes, hash);
      return { ...upload, receivedBytes };
    });
  }

  finish(
    {
      owner,
      id,
      expected,
      sizeBytes,
    }: UploadAddress & {
      /** undefined: whatever the bytes' digest is. */
      readonly expected: Digest | undefined;
      readonly sizeBytes: number;
    },
    signal: AbortSignal,
  ): Promise<Asset> {
    const { uploads, incoming, stored, clock } = this.#deps;
    const isExpected = (digest: Digest | undefined): boolean => expected === undefined || digest === expected;
    return this.#turns.alone(id, signal, async (joined) => {
      const upload = await uploads.find(owner, id, clock.nowMs());
      if (upload.state !== "uploading") {
        // The answer to an earlier call was lost.
        if (upload.state === "available" && isExpected(upload.digest) && upload.sizeBytes === sizeBytes) return upload;
        throw new ServiceError("ASSET_NOT_UPLOADING", `asset ${upload.id} is in state ${upload.state}`);
      }
      const { receivedBytes } = upload;
      if (receivedBytes !== sizeBytes) {
        throw new ServiceError("ASSET_SIZE_MISMATCH", `${receivedBytes} bytes arrived, ${sizeBytes} were declared`, {
          metadata: { receivedBytes: String(receivedBytes) },
        });
      }
      await incoming.settle(id, receivedBytes).catch((error: unknown) => this.#noteLoss(upload, error));
      const digest = await this.#digestOf(id, receivedBytes, joined);
      if (!isExpected(digest)) {
        throw new ServiceError(
          "ASSET_DIGEST_MISMATCH",
          `the bytes have the digest ${digest}, ${expected} was declared`,
        );
      }
      const asset = await stored.lock.run(digest, async () => {
        const identity = await stored.take({ digest, sizeBytes, path: incoming.path(id), owner }, joined);
        return uploads.finish(owner, id, { digest, sizeBytes, identity }, clock.nowMs());
      });
      this.#digests.drop(id);
      await incoming.remove(id);
      return asset;
    });
  }

  /** Gives an upload up; one that is gone is success. */
  async cancel({ owner, id }: UploadAddress): Promise<void> {
    try {
      await this.#uploading(owner, id);
    } catch (error) {
      if (isServiceError(error, "ASSET_NOT_FOUND")) return;
      throw error;
    }
    await this.#turns.end(id, new ServiceError("CANCELED", "the upload was cancelled"));
    await this.#discard({ owner, id });
  }

  /** After a start: what nobody can resume goes, and so do files without a row. */
  async recover(): Promise<void> {
    await this.#deps.uploads.recover();
    await this.#removeStrays();
  }

  /** Uploads that would expire now. */
  expired(): Promise<{ readonly owner: Owner; readonly id: AssetId; readonly bytes: number }[]> {
    const { uploads, clock, uploadLifetimeMs } = this.#deps;
    return uploads
      .idleSince(clock.nowMs() - uploadLifetimeMs)
      .then((idle) => idle.filter(({ id }) => !this.#turns.isTaken(id)));
  }

  /** Gives up what has been idle for too long. Answers what went. */
  async expire(): Promise<{ readonly ids: readonly AssetId[]; readonly bytes: number }> {
    const { uploads, clock, log, uploadLifetimeMs } = this.#deps;
    const idle = await this.expired();
    let bytes = 0;
    for (const upload of idle) bytes += await this.#discard(upload);
    await uploads.forgetFinished(clock.nowMs() - uploadLifetimeMs);
    await this.#removeStrays();
    if (idle.length > 0) log.info("idle uploads expired", { uploads: idle.length, bytes });
    return { ids: idle.map(({ id }) => id), bytes };
  }

  /** Removes the row, then the file; answers the bytes it had. */
  #discard({ owner, id }: UploadAddress): Promise<number> {
    const { uploads, incoming } = this.#deps;
    return this.#turns.alone(id, new AbortController().signal, async () => {
      const bytes = await uploads.cancel(owner, id);
      this.#digests.drop(id);
      await incoming.remove(id);
      return bytes;
    });
  }

  async #removeStrays(): Promise<void> {
    const { uploads, incoming } = this.#deps;
    for (const id of await incoming.list()) {
      if (!this.#turns.isTaken(id) && !(await uploads.isUploading(id))) await incoming.remove(id);
    }
  }

  async #uploading(owner: Owner, id: AssetId): Promise<Asset> {
    const upload = await this.#deps.uploads.find(owner, id, this.#deps.clock.nowMs());
    if (upload.state === "uploading") return upload;
    throw new ServiceError("ASSET_NOT_UPLOADING", `asset ${upload.id} is in state ${upload.state}`);
  }

  /** Counts a step ahead of what arrived; near the quota's end as much as the chunk needs. */
  async #reserve(
    { owner, id }: UploadAddress,
    received: number,
    needed: number,
    quota: Quota,
    signal: AbortSignal,
  ): Promise<number> {
    const { uploads, maxAssetBytes } = this.#deps;
    await this.#mustHaveRoom(needed, signal);
    const ahead = Math.max(received + needed, Math.min(received + stepBytes, maxAssetBytes));
    try {
      await uploads.reserve(owner, id, ahead, quota);
      return ahead;
    } catch (error) {
      if (ahead === received + needed) throw error;
      await uploads.reserve(owner, id, received + needed, quota);
      return received + needed;
    }
  }

  /** Throws ASSET_STORE_FULL when `bytes` more would fill the disk, although nothing is left on it that nobody needs. */
  async #mustHaveRoom(bytes: number, signal: AbortSignal): Promise<void> {
    const { incoming, removal } = this.#deps;
    for (;;) {
      try {
        return await incoming.mustHaveRoom(bytes);
      } catch (error) {
        signal.throwIfAborted();
        if (!isServiceError(error, "ASSET_STORE_FULL") || !(await removal.hurry(signal))) throw error;
      }
    }
  }

  /** From the running state when this process received every byte, else from the file. */
  async #digestOf(id: AssetId, sizeBytes: number, signal: AbortSignal): Promise<Digest> {
    const running = this.#digests.take(id, sizeBytes);
    if (running !== undefined) return `sha256:${running.digest("hex")}`;
    const hash = createHash("sha256");
    for await (const chunk of this.#deps.incoming.read(id, signal)) hash.update(chunk);
    return `sha256:${hash.digest("hex")}`;
  }

  /** When the file is shorter than the row says, the disk lost bytes, and the sender must send them again. */
  async #noteLoss({ owner, id }: Asset, error: unknown): Promise<never> {
    if (isServiceError(error, "UPLOAD_OFFSET_MISMATCH")) {
      const left = Number(error.metadata["receivedBytes"]);
      this.#deps.log.error("an upload has lost bytes", { assetId: id, left });
      await this.#deps.uploads.note(owner, id, left, left, this.#deps.clock.nowMs());
    }
    throw error;
  }

  #mustBeAllowed(bytes: number): void {
    const { maxAssetBytes } = this.#deps;
    if (bytes <= maxAssetBytes) return;
    throw new ServiceError("ASSET_TOO_LARGE", `${bytes} bytes are more than the allowed ${maxAssetBytes}`, {
      metadata: { maxBytes: String(maxAssetBytes) },
    });
  }
}

function offsetMismatch(receivedBytes: number): ServiceError {
  return new ServiceError("UPLOAD_OFFSET_MISMATCH", `the upload continues at byte ${receivedBytes}`, {
    metadata: { receivedBytes: String(receivedBytes) },
  });
}
