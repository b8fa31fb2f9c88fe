import { createHash, randomUUID } from "node:crypto";
import { createReadStream } from "node:fs";
import { open, rm, stat } from "node:fs/promises";
import { KeyedTurns, mib, ServiceError } from "@unkey/base";
import type { Digest, Owner } from "../domain/asset.ts";
import type { BlobStore } from "../ports.ts";
import type { BlobCache } from "./blob-cache.ts";
import type { UploadedPart } from "./s3/s3-answers.ts";
import type { S3Client } from "./s3/s3-client.ts";
import type { BlobKeys } from "./sealed/blob-keys.ts";
import { seal, sealedSizeOf, sizeOfSealed, unseal } from "./sealed/sealed-stream.ts";

export interface S3BlobStoreDeps {
  readonly client: S3Client;
  /** Of every key; ends with a slash unless empty. */
  readonly prefix: string;
  /** Blobs that this host has read. */
  readonly cache: BlobCache;
  /** Seals what leaves this host; undefined stores it as it is. */
  readonly keys: BlobKeys | undefined;
  /** No blob is longer: what a bucket sends without end must not fill this host's disk. */
  readonly maxBlobBytes: number;
}

/** S3 takes 10,000 parts of at least 5 MiB; the parts under way are held in memory. */
const leastPartBytes = 8 * mib;
const mostParts = 9_000;
const partsAtOnce = 3;
const callsAtOnce = 16;

/**
 * Blobs as objects `<prefix>sha256/<64 hex>` of an S3 bucket that several hosts may share, read through a cache on this host:
 * a blob is fetched once, checked against its digest, and then staged from the cache like any other.
 */
export class S3BlobStore implements BlobStore {
  readonly survivesCrashes = true;
  readonly #deps: S3BlobStoreDeps;
  readonly #fetches = new KeyedTurns();

  constructor(deps: S3BlobStoreDeps) {
    this.#deps = deps;
  }

  async adopt(digest: Digest, path: string, owner: Owner, signal: AbortSignal): Promise<void> {
    const { client, cache, keys } = this.#deps;
    const { size } = await stat(path);
    const text = createReadStream(path, { highWaterMark: mib, signal }) as AsyncIterable<Buffer>;
    const key = await keys?.keyFor(digest, owner);
    const bytes = key === undefined ? text : seal(text, { name: digest, key });
    const sizeBytes = key === undefined ? size : sealedSizeOf(size);
    if (sizeBytes <= leastPartBytes) {
      await client.put(this.#keyOf(digest), Buffer.concat(await Array.fromAsync(bytes)), signal);
    } else {
      await this.#putParts(this.#keyOf(digest), bytes, sizeBytes, signal);
    }
    // After the upload: what is in the cache is in the bucket.
    await cache.add(digest, path);
  }

  async size(digest: Digest, signal: AbortSignal): Promise<number | undefined> {
    const head = await this.#deps.client.head(this.#keyOf(digest), signal);
    if (head === undefined) return undefined;
    return this.#deps.keys === undefined ? head.sizeBytes : sizeOfSealed(head.sizeBytes);
  }

  async identity(digest: Digest, signal: AbortSignal): Promise<string | undefined> {
    const { cache, client } = this.#deps;
    const cached = await cache.identity(digest);
    if (cached !== undefined) return `cache:${cached}`;
    const head = await client.head(this.#keyOf(digest), signal);
    return head && `s3:${head.etag}`;
  }

  async *read(digest: Digest, offset: number, signal: AbortSignal): AsyncGenerator<Uint8Array> {
    const path = await this.#deps.cache.path(digest);
    if (path !== undefined) yield* createReadStream(path, { start: offset, highWaterMark: mib, signal });
    else yield* this.#stored(digest, offset, signal);
  }

  async *list(signal: AbortSignal): AsyncGenerator<readonly Digest[]> {
    const prefix = `${this.#deps.prefix}sha256/`;
    let page: Digest[] = [];
    for await (const { key } of this.#deps.client.list(prefix, signal)) {
      const hex = key.slice(prefix.length);
      if (!/^[0-9a-f]{64}$/.test(hex)) continue;
      page.push(`sha256:${hex}`);
      if (page.length < 1000) continue;
      yield page;
      page = [];
    }
    if (page.length > 0) yield page;
  }

  async delete(digests: readonly Digest[], signal: AbortSignal): Promise<void> {
    const { client, cache, keys } = this.#deps;
    await cache.delete(digests);
    for (let at = 0; at < digests.length; at += callsAtOnce) {
      const some = digests.slice(at, at + callsAtOnce);
      await Promise.all(some.map((digest) => client.delete(this.#keyOf(digest), signal)));
    }
    await keys?.forget(digests);
  }

  /** Fetches the blob into the cache unless it is there. */
  localPath(digest: Digest, signal: AbortSignal): Promise<string> {
    return this.#fetches.run(digest, async () => {
      const { cache } = this.#deps;
      const cached = await cache.path(digest);
      if (cached !== undefined) return cached;
      const arriving = cache.arriving(`${digest.slice("sha256:".length)}-${randomUUID()}`);
      try {
        await this.#fetch(digest, arriving, signal);
        return await cache.add(digest, arriving);
      } finally {
        await rm(arriving, { force: true });
      }
    });
  }

  async #fetch(digest: Digest, path: string, signal: AbortSignal): Promise<void> {
    const hash = createHash("sha256");
    await using file = await open(path, "wx", 0o600);
    let left = this.#deps.maxBlobBytes;
    for await (const chunk of this.#stored(digest, 0, signal)) {
      left -= chunk.length;
      if (left < 0) throw new ServiceError("ASSET_CORRUPT", `the stored blob ${digest} is longer than any may be`);
      hash.update(chunk);
      await file.writeFile(chunk);
    }
    if (`sha256:${hash.digest("hex")}` !== digest) {
      throw new ServiceError("ASSET_CORRUPT", `the stored blob ${digest} has other bytes than its digest says`);
    }
  }

  /** The blob's bytes as the bucket has them. */
  async *#stored(digest: Digest, offset: number, signal: AbortSignal): AsyncGenerator<Uint8Array> {
    const { client, keys } = this.#deps;
    const objectKey = this.#keyOf(digest);
    const from = async (position: number): Promise<AsyncIterable<Uint8Array>> => {
      const bytes = await client.get(objectKey, position, signal);
      if (bytes === undefined) throw missing(digest);
      return bytes;
    };
    if (keys === undefined) {
      yield* await from(offset);
      return;
    }
    const key = await keys.find(digest);
    const head = await client.head(objectKey, signal);
    if (key === undefined || head === undefined) throw missing(digest);
    yield* unseal(from, { name: digest, key }, { offset, sizeBytes: sizeOfSealed(head.sizeBytes) });
  }

  async #putParts(
    key: string,
    bytes: AsyncIterable<Uint8Array>,
    sizeBytes: number,
    signal: AbortSignal,
  ): Promise<void> {
    const { client } = this.#deps;
    const uploadId = await client.beginParts(key, signal);
    try {
      const parts: UploadedPart[] = [];
      const underWay = new Set<Promise<void>>();
      const partBytes = Math.max(leastPartBytes, Math.ceil(sizeBytes / mostParts));
      let number = 0;
      const send = async (at: number, part: Buffer) => {
        parts.push(await client.putPart(key, uploadId, at, part, signal));
      };
      for await (const part of inParts(bytes, partBytes)) {
        const sent = send(++number, part);
        underWay.add(sent);
        void sent.then(
          () => underWay.delete(sent),
          () => undefined, // stays, so that the next wait meets its failure
        );
        if (underWay.size >= partsAtOnce) await Promise.race(underWay);
      }
      await Promise.all(underWay);
      await client.completeParts(
        key,
        uploadId,
        parts.toSorted((a, b) => a.number - b.number),
        signal,
      );
    } catch (error) {
      // As far as it can be done now; what stays is given up by a later start.
      await client.abortParts(key, uploadId, AbortSignal.timeout(10_000)).catch(() => undefined);
      throw error;
    }
  }

  #keyOf(digest: Digest): string {
    return `${this.#deps.prefix}${digest.replace(":", "/")}`;
  }
}

/** Uploads in parts that began so long ago are nobody's any more. */
const abandonedAfterMs = 24 * 3_600_000;

/** Gives up what uploads of dead processes left in the bucket; answers how many. */
export async function giveUpAbandonedParts(
  client: S3Client,
  prefix: string,
  nowMs: number,
  signal: AbortSignal,
): Promise<number> {
  const old = (await client.listParts(prefix, signal)).filter(({ begunAtMs }) => begunAtMs < nowMs - abandonedAfterMs);
  for (const { key, uploadId } of old) await client.abortParts(key, uploadId, signal);
  return old.length;
}

async function* inParts(chunks: AsyncIterable<Uint8Array>, partBytes: number): AsyncGenerator<Buffer> {
  let pieces: Uint8Array[] = [];
  let bytes = 0;
  for await (const chunk of chunks) {
    for (let rest: Uint8Array = chunk; rest.length > 0; ) {
      const piece = rest.subarray(0, partBytes - bytes);
      pieces.push(piece);
      bytes += piece.length;
      rest = rest.subarray(piece.length);
      if (bytes < partBytes) continue;
      yield Buffer.concat(pieces);
      pieces = [];
      bytes = 0;
    }
  }
  if (bytes > 0) yield Buffer.concat(pieces);
}

function missing(digest: Digest): ServiceError {
  return new ServiceError("ASSET_CORRUPT", `the stored blob ${digest} is missing`);
}
