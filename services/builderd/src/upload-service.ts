import { mkdir, readdir, rm } from "node:fs/promises";
import { join } from "node:path";
import { type Clock, newId, ServiceError, type TenantId, type UploadId } from "@unkey/base";
import type { Logger } from "@unkey/daemon";
import { defaultImageLimits, importLayoutArchive, StreamingDigest } from "@unkey/oci";
import type { Upload, UploadStore } from "./ports.ts";

export interface UploadServiceDeps {
  readonly store: UploadStore;
  /** Holds one OCI layout for each upload, under its id. */
  readonly directory: string;
  readonly maxBytes: number;
  readonly lifetimeMs: number;
  readonly silenceMs?: number;
  readonly clock: Clock;
  readonly log: Logger;
}

export interface NewUpload {
  readonly tenantId: TenantId;
  /** Its file's. */
  readonly name: string;
  readonly expectedDigest: string;
}

/** An upload that sends nothing for so long is given up: it holds one of the few places. */
const silenceMs = 60_000;
const maxAtOnce = 8;
/** Leaves places to other tenants: whoever sends a byte now and then holds its own for as long as the caller lets it. */
const maxAtOncePerTenant = 4;
const maxPerTenant = 32;

/**
 * Takes image archives in. An archive is unpacked and checked while it arrives, so one that is no image is refused before
 * it is all here, and what is kept is ready to be built from. The row comes last: a directory without one is a leftover.
 */
export class UploadService {
  readonly #deps: UploadServiceDeps;
  readonly #receiving = new Map<UploadId, TenantId>();

  constructor(deps: UploadServiceDeps) {
    this.#deps = deps;
  }

  /** The name and `expectedDigest` may be empty. Throws IMAGE_ARCHIVE_INVALID, IMAGE_DIGEST_MISMATCH, IMAGE_TOO_LARGE, UPLOAD_LIMIT_REACHED. */
  async receive({ tenantId, name, expectedDigest }: NewUpload, chunks: AsyncIterable<Uint8Array>): Promise<Upload> {
    const { store, clock, maxBytes, lifetimeMs, silenceMs: silenceLimitMs = silenceMs } = this.#deps;
    if (this.#receiving.size >= maxAtOnce) {
      throw new ServiceError("UPLOAD_LIMIT_REACHED", `${maxAtOnce} uploads are under way`);
    }
    const own = [...this.#receiving.values()].filter((receiver) => receiver === tenantId).length;
    if (own >= maxAtOncePerTenant) {
      throw new ServiceError("UPLOAD_LIMIT_REACHED", `${own} uploads of the tenant are under way`);
    }
    const uploadId = newId("upload");
    this.#receiving.set(uploadId, tenantId);
    try {
      const digest = new StreamingDigest();
      let sizeBytes = 0;
      async function* counted(): AsyncGenerator<Uint8Array> {
        for await (const chunk of withoutSilence(chunks, silenceLimitMs)) {
          sizeBytes += chunk.length;
          if (sizeBytes > maxBytes) {
            throw new ServiceError("IMAGE_TOO_LARGE", `the archive is over ${maxBytes} bytes`, {
              metadata: { limitBytes: String(maxBytes) },
            });
          }
          digest.update(chunk);
          yield chunk;
        }
      }
      await mkdir(this.directoryOf(uploadId), { recursive: true, mode: 0o700 });
      await importLayoutArchive(counted(), this.directoryOf(uploadId), defaultImageLimits);
      const found = digest.finish();
      if (expectedDigest !== "" && found !== expectedDigest) {
        throw new ServiceError(
          "IMAGE_DIGEST_MISMATCH",
          `the archive has the digest ${found} instead of ${expectedDigest}`,
        );
      }
      const upload = { uploadId, tenantId, name, digest: found, sizeBytes, expiresAtMs: clock.nowMs() + lifetimeMs };
      await store.add(upload, maxPerTenant);
      return upload;
    } catch (error) {
      await rm(this.directoryOf(uploadId), { recursive: true, force: true });
      throw error;
    } finally {
      this.#receiving.delete(uploadId);
    }
  }

  /** Removes what will not be built from; a build under way keeps it until its end. */
  async discard(tenantId: TenantId, uploadId: UploadId): Promise<void> {
    await this.#deps.store.expire(tenantId, uploadId);
    await this.sweep();
  }

  directoryOf(uploadId: UploadId): string {
    return join(this.#deps.directory, uploadId);
  }

  /** Forgets spent uploads and removes directories that no upload owns. It takes no hint: a crash is finished by the next pass. */
  async sweep(): Promise<void> {
    const { store, directory, clock, log } = this.#deps;
    const spent = await store.removeSpent(clock.nowMs());
    // Listed before the rows are read: an upload that ends in between has its row by then or is still being received.
    const names = await readdir(directory).catch(() => []);
    const receiving = new Set<string>(this.#receiving.keys());
    const known = await store.ids();
    for (const name of names) {
      if (!known.has(name) && !receiving.has(name)) await rm(join(directory, name), { recursive: true, force: true });
    }
    if (spent.length > 0) log.info("uploads removed", { count: spent.length });
  }
}

async function* withoutSilence(chunks: AsyncIterable<Uint8Array>, limitMs: number): AsyncGenerator<Uint8Array> {
  const iterator = chunks[Symbol.asyncIterator]();
  for (;;) {
    const silent = Promise.withResolvers<never>();
    const timer = setTimeout(
      () => silent.reject(new ServiceError("DEADLINE_EXCEEDED", `the upload sent nothing for ${limitMs / 1000} s`)),
      limitMs,
    );
    try {
      const next = await Promise.race([iterator.next(), silent.promise]);
      if (next.done === true) return;
      yield next.value;
    } finally {
      clearTimeout(timer);
    }
  }
}
