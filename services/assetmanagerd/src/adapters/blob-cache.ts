import { mkdir, rm } from "node:fs/promises";
import { join } from "node:path";
import type { Clock } from "@unkey/base";
import type { Digest } from "../domain/asset.ts";
import { DiskBlobStore } from "./disk-blob-store.ts";

interface Entry {
  readonly sizeBytes: number;
  usedAtMs: number;
}

/** How long a path that was answered stays: whoever asked links or opens it within that time. */
const inHandsMs = 10 * 60_000;

/**
 * Copies on this host of blobs that are stored elsewhere, the least recently used of which goes when there are too many. A
 * file that was staged for a VM by a hard link lives on there.
 */
export class BlobCache {
  readonly #disk: DiskBlobStore;
  readonly #arriving: string;
  readonly #maxBytes: number;
  readonly #clock: Clock;
  /** Least recently used first. */
  readonly #entries = new Map<Digest, Entry>();
  #bytes = 0;

  private constructor(disk: DiskBlobStore, arriving: string, maxBytes: number, clock: Clock) {
    this.#disk = disk;
    this.#arriving = arriving;
    this.#maxBytes = maxBytes;
    this.#clock = clock;
  }

  /** Opens the cache of an earlier process, without what arrived only in part. */
  static async open(root: string, maxBytes: number, clock: Clock): Promise<BlobCache> {
    const arriving = join(root, "arriving");
    await rm(arriving, { recursive: true, force: true });
    await mkdir(arriving, { recursive: true, mode: 0o700 });
    const cache = new BlobCache(await DiskBlobStore.open(root), arriving, maxBytes, clock);
    for await (const page of cache.#disk.list()) {
      for (const digest of page) {
        const sizeBytes = await cache.#disk.size(digest);
        if (sizeBytes !== undefined) cache.#note(digest, { sizeBytes, usedAtMs: 0 });
      }
    }
    await cache.#evict();
    return cache;
  }

  /** Where a file may be written before it is added. */
  arriving(name: string): string {
    return join(this.#arriving, name);
  }

  /** Takes the verified file at `path`; answers where it is now. */
  async add(digest: Digest, path: string): Promise<string> {
    await this.#disk.adopt(digest, path);
    const sizeBytes = (await this.#disk.size(digest)) ?? 0;
    this.#note(digest, { sizeBytes, usedAtMs: this.#clock.nowMs() });
    await this.#evict();
    return this.#disk.localPath(digest);
  }

  /** The file of a cached blob; undefined when it is not cached. */
  async path(digest: Digest): Promise<string | undefined> {
    const entry = this.#entries.get(digest);
    if (entry === undefined) return undefined;
    this.#note(digest, { ...entry, usedAtMs: this.#clock.nowMs() });
    return this.#disk.localPath(digest);
  }

  async identity(digest: Digest): Promise<string | undefined> {
    return this.#entries.has(digest) ? this.#disk.identity(digest) : undefined;
  }

  async delete(digests: readonly Digest[]): Promise<void> {
    for (const digest of digests) this.#forget(digest);
    await this.#disk.delete(digests);
  }

  #note(digest: Digest, entry: Entry): void {
    this.#forget(digest);
    this.#entries.set(digest, entry);
    this.#bytes += entry.sizeBytes;
  }

  #forget(digest: Digest): void {
    this.#bytes -= this.#entries.get(digest)?.sizeBytes ?? 0;
    this.#entries.delete(digest);
  }

  async #evict(): Promise<void> {
    const settledBeforeMs = this.#clock.nowMs() - inHandsMs;
    for (const [digest, { usedAtMs }] of this.#entries) {
      if (this.#bytes <= this.#maxBytes || usedAtMs > settledBeforeMs) return;
      this.#forget(digest);
      await this.#disk.delete([digest]);
    }
  }
}
