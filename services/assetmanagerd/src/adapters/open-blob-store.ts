import { join } from "node:path";
import type { Clock } from "@unkey/base";
import type { RemoteConfig } from "../config.ts";
import type { BlobStore, KeyCatalog } from "../ports.ts";
import { BlobCache } from "./blob-cache.ts";
import { DiskBlobStore } from "./disk-blob-store.ts";
import { S3Client } from "./s3/s3-client.ts";
import { giveUpAbandonedParts, S3BlobStore } from "./s3-blob-store.ts";
import { BlobKeys } from "./sealed/blob-keys.ts";
import { parseMasterKey, TenantKeyRing } from "./sealed/tenant-key-ring.ts";

export interface OpenBlobStoreOptions {
  /** On the disk of the uploads, which become blobs by a link. */
  readonly directory: string;
  /** undefined: the directory holds the blobs; otherwise it holds copies of them. */
  readonly remote: RemoteConfig | undefined;
  readonly keys: KeyCatalog;
  readonly maxBlobBytes: number;
  readonly clock: Clock;
  readonly signal: AbortSignal;
}

export interface OpenedBlobStore extends AsyncDisposable {
  readonly store: BlobStore;
  /** Fails when blobs cannot be stored now. */
  check(signal: AbortSignal): Promise<void>;
}

/** The blob store that the settings name. Throws when a remote one cannot be used. */
export async function openBlobStore(options: OpenBlobStoreOptions): Promise<OpenedBlobStore> {
  const { directory, remote, keys, maxBlobBytes, clock, signal } = options;
  if (remote === undefined) {
    const store = await DiskBlobStore.open(directory);
    return { store, check: () => Promise.resolve(), [Symbol.asyncDispose]: () => Promise.resolve() };
  }
  const { s3, prefix, cacheMaxBytes, blobKey } = remote;
  await using stack = new AsyncDisposableStack();
  const client = stack.use(new S3Client(s3, clock));
  const ring = blobKey && new TenantKeyRing(parseMasterKey(blobKey.reveal()), keys);
  await client.check(signal);
  await giveUpAbandonedParts(client, prefix, clock.nowMs(), signal);
  const cache = await BlobCache.open(join(directory, "cache"), cacheMaxBytes, clock);
  const store = new S3BlobStore({ client, prefix, cache, keys: ring && new BlobKeys(ring, keys), maxBlobBytes });
  const owned = stack.move();
  return { store, check: (each) => client.check(each), [Symbol.asyncDispose]: () => owned.disposeAsync() };
}
