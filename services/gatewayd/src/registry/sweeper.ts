import { type Clock, newId, type TenantId } from "@unkey/base";
import type { Logger } from "@unkey/daemon";
import type { AssetBytes, ByteCall } from "./asset-bytes.ts";
import type { Releasing, SweepStore } from "./sweep-store.ts";
import type { UploadRow, UploadStore } from "./upload-store.ts";

const batchSize = 200;
/** Bounds one pass; the next goes on. */
const maxBatches = 50;

export interface SweeperDeps {
  readonly sweeps: SweepStore;
  readonly uploads: UploadStore;
  readonly bytes: AssetBytes;
  readonly clock: Clock;
  readonly log: Logger;
  readonly graceMs: number;
  readonly untaggedMs: number;
}

/**
 * Gives back what the registry no longer needs: abandoned uploads, manifests that nothing names, blobs that no manifest
 * refers to. Each step is small and may be repeated, so a crash anywhere is finished by the next pass. Bytes go in two
 * steps: first nobody finds them any more, then they are deleted.
 */
export class Sweeper {
  readonly #deps: SweeperDeps;
  #last: Promise<void> = Promise.resolve();
  #waiting: Promise<void> | undefined;

  constructor(deps: SweeperDeps) {
    this.#deps = deps;
  }

  /** Looks through everything. */
  pass(signal: AbortSignal): Promise<void> {
    return this.#alone(() => this.#pass(signal));
  }

  /** Releases only what was deleted by name, and what an earlier release left unfinished: cheap, whatever is stored. */
  releaseDeleted(signal: AbortSignal): Promise<void> {
    if (this.#waiting) return this.#waiting;
    this.#waiting = this.#alone(async () => {
      this.#waiting = undefined; // what is deleted from here on needs another one
      const { sweeps, clock } = this.#deps;
      const nowMs = clock.nowMs();
      await inBatches(signal, () => sweeps.beginRelease({ nowMs, graceMs: nowMs - 1 }, batchSize));
      await this.#release(signal);
    });
    return this.#waiting;
  }

  /** Runs one after the other what the others started. */
  #alone(body: () => Promise<void>): Promise<void> {
    const mine = this.#last.catch(() => undefined).then(body);
    this.#last = mine;
    return mine;
  }

  async #pass(signal: AbortSignal): Promise<void> {
    const { sweeps, clock, graceMs, untaggedMs } = this.#deps;
    const ages = { nowMs: clock.nowMs(), graceMs, untaggedMs };
    await this.#dropUploads(ages.nowMs - graceMs, signal);
    await sweeps.endHolds();
    await inBatches(signal, () => sweeps.dropManifests(ages, batchSize));
    await inBatches(signal, () => sweeps.dropLinks(ages, batchSize));
    await inBatches(signal, () => sweeps.beginRelease(ages, batchSize));
    await this.#release(signal);
    await sweeps.dropRepositories(ages);
  }

  async #dropUploads(beforeMs: number, signal: AbortSignal): Promise<void> {
    const { uploads, log } = this.#deps;
    for (const upload of await uploads.abandoned(beforeMs, batchSize)) {
      signal.throwIfAborted();
      await this.#dropUpload(upload, signal).catch((error: unknown) =>
        log.warn("an abandoned upload stays for now", { uploadId: upload.uploadId, error }),
      );
    }
  }

  async #dropUpload(upload: UploadRow, signal: AbortSignal): Promise<void> {
    const { uploads, bytes } = this.#deps;
    const call = callFor(upload.tenantId, signal);
    // Without an asset a crash may have fallen between its begin and our note of it: the key finds it.
    const assetId = upload.assetId || (await bytes.begin(call, upload.uploadId)).assetId;
    await bytes.cancel(call, assetId);
    await uploads.remove(upload);
  }

  async #release(signal: AbortSignal): Promise<void> {
    const { sweeps, log } = this.#deps;
    for (const blob of await sweeps.releasing(batchSize * maxBatches)) {
      signal.throwIfAborted();
      await this.#releaseOne(blob, signal).catch((error: unknown) =>
        log.warn("a blob could not be released yet", { digest: blob.digest, error }),
      );
    }
  }

  async #releaseOne(blob: Releasing, signal: AbortSignal): Promise<void> {
    const { sweeps, bytes } = this.#deps;
    const { tenantId, digest } = blob;
    const call = callFor(tenantId, signal);
    const assetId = blob.assetId || (await bytes.byDigest(call, digest))?.assetId;
    if (assetId !== undefined) await bytes.delete(call, tenantId, assetId);
    await sweeps.released(blob);
  }
}

function callFor(tenantId: TenantId, signal: AbortSignal): ByteCall {
  return { acting: { tenantId, subject: "gatewayd", roles: [], requestId: newId("req") }, signal };
}

async function inBatches(signal: AbortSignal, step: () => Promise<number>): Promise<void> {
  for (let batch = 0; batch < maxBatches; batch++) {
    signal.throwIfAborted();
    if ((await step()) < batchSize) return;
  }
}
