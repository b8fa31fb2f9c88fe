import { createHash } from "node:crypto";
import { type Clock, KeyedTurns, ServiceError } from "@unkey/base";
import type { Counter, Logger, Metrics } from "@unkey/daemon";
import type { Digest, Owner } from "./domain/asset.ts";
import type { BlobCatalog, BlobStore, Content } from "./ports.ts";

export interface StoredBlobsDeps {
  readonly catalog: BlobCatalog;
  readonly store: BlobStore;
  readonly clock: Clock;
  readonly log: Logger;
  readonly metrics: Metrics;
}

/** A file with the right bytes, and who sent it. */
export interface StoredFile {
  readonly digest: Digest;
  readonly sizeBytes: number;
  readonly path: string;
  readonly owner: Owner;
}

/**
 * Stored content that is never trusted unseen: bytes are hashed when they are read, and for staging unless they were found
 * right before and have not changed since (their identity is remembered, across restarts). Wrong bytes put their assets
 * into state error; right ones, stored again, bring them back.
 */
export class StoredBlobs {
  /**
   * Held for a digest while its blob becomes part of the store and its row is written, and while a blob without rows is
   * deleted: each would otherwise act on what the other is about to change. This process alone owns the store.
   */
  readonly lock = new KeyedTurns();
  readonly #verifying = new KeyedTurns();
  readonly #deps: StoredBlobsDeps;
  readonly #corrupt: Counter;

  constructor(deps: StoredBlobsDeps) {
    this.#deps = deps;
    this.#corrupt = deps.metrics.counter("unkey_assets_corrupt_total", "Stored blobs found missing or wrong.");
  }

  /** True when the content is there, was found right and has not changed since. */
  async holds(digest: Digest, sizeBytes: number, signal: AbortSignal): Promise<boolean> {
    const record = await this.#deps.catalog.find(digest);
    if (record?.identity === undefined || record.sizeBytes !== sizeBytes) return false;
    return (await this.#deps.store.identity(digest, signal)) === record.identity;
  }

  /** Makes the verified file the content of its digest unless the store holds it; within `lock`. Answers its identity. */
  async take(file: StoredFile, signal: AbortSignal): Promise<string> {
    const { digest, sizeBytes, path, owner } = file;
    const { store } = this.#deps;
    if (!(await this.holds(digest, sizeBytes, signal))) await store.adopt(digest, path, owner, signal);
    const identity = await store.identity(digest, signal);
    if (identity === undefined) throw new Error(`${digest} is not there after it was stored`);
    return identity;
  }

  /** A file of this host with the right bytes, given what they were found right as. Throws ASSET_CORRUPT. */
  async verifiedPath({ digest, identity }: Content, signal: AbortSignal): Promise<string> {
    const { catalog, store } = this.#deps;
    const isStill = async (known: string | undefined) =>
      known !== undefined && known === (await store.identity(digest, signal));
    if (!(await isStill(identity))) {
      await this.#verifying.run(digest, async () => {
        if (!(await isStill((await catalog.find(digest))?.identity))) await this.verify(digest, signal);
      });
    }
    return store.localPath(digest, signal);
  }

  /** Reads the whole and notes what it found. `pace` is told of each chunk. Throws ASSET_CORRUPT. */
  async verify(digest: Digest, signal: AbortSignal, pace?: (bytes: number) => Promise<void>): Promise<void> {
    for await (const chunk of this.read(digest, 0, signal)) await pace?.(chunk.length);
  }

  /** The bytes from `offset`; throws ASSET_CORRUPT at the end when the whole is not the digest's. */
  async *read(digest: Digest, offset: number, signal: AbortSignal): AsyncGenerator<Uint8Array> {
    const { catalog, store, clock } = this.#deps;
    const identity = await store.identity(digest, signal);
    if (identity === undefined) throw await this.#wrong(signal, digest, identity, "is missing");
    const hash = createHash("sha256");
    let position = 0;
    // From the first byte even when the caller wants a later one: only the whole can be verified.
    for await (const chunk of store.read(digest, 0, signal)) {
      hash.update(chunk);
      const skip = Math.max(0, offset - position);
      position += chunk.length;
      if (skip < chunk.length) yield chunk.subarray(skip);
    }
    if (`sha256:${hash.digest("hex")}` !== digest) {
      throw await this.#wrong(signal, digest, identity, "has other bytes than its digest says");
    }
    if ((await catalog.find(digest))?.identity === identity) return;
    await this.lock.run(digest, async () => {
      if ((await store.identity(digest, signal)) === identity)
        await catalog.noteRight([{ digest, identity }], clock.nowMs());
    });
  }

  /** Puts assets whose content is missing or cut short into state error: what a crash or a damaged disk left. */
  async heal(signal: AbortSignal): Promise<void> {
    const { catalog, store } = this.#deps;
    if (store.survivesCrashes) return;
    let after: Digest | "" = "";
    for (;;) {
      const page = await catalog.after(after, 500);
      for (const { digest, sizeBytes, refs } of page) {
        signal.throwIfAborted();
        after = digest;
        if (refs === 0 || (await store.size(digest, signal)) === sizeBytes) continue;
        await this.#wrong(signal, digest, await store.identity(digest, signal), "is missing or cut short");
      }
      if (page.length === 0) return;
    }
  }

  /** Notes that the bytes of that identity are wrong, unless others have come in their place. */
  #wrong(signal: AbortSignal, digest: Digest, identity: string | undefined, why: string): Promise<ServiceError> {
    const { catalog, store, log } = this.#deps;
    return this.lock.run(digest, async () => {
      if ((await store.identity(digest, signal)) === identity && (await catalog.find(digest)) !== undefined) {
        const assets = await catalog.noteWrong(digest);
        this.#corrupt.inc();
        log.error("stored bytes are wrong", { digest, why, assets });
      }
      return new ServiceError("ASSET_CORRUPT", `the stored blob ${digest} ${why}`);
    });
  }
}
