import type { Client } from "@connectrpc/connect";
import { type Asset, AssetKind, type AssetService, AssetState } from "@unkey/api/asset";
import {
  backoffDelayMs,
  type Clock,
  formatBytes,
  isServiceError,
  mib,
  ServiceError,
  systemClock,
  type TenantId,
} from "@unkey/base";
import {
  collectVerified,
  type Descriptor,
  type FetchedDocument,
  type FetchOptions,
  type ImageSource,
  parseDigest,
  verified,
} from "@unkey/oci";
import { callOptions } from "@unkey/rpc";

const callTimeoutMs = 30_000;
const maxDocumentBytes = 4 * mib;
const attempts = 5;
const backoff = { baseMs: 250, maxMs: 5_000 };

export interface PushedImageOptions {
  readonly assets: Client<typeof AssetService>;
  readonly tenantId: TenantId;
  readonly repository: string;
  /** Of its manifest or index. */
  readonly digest: string;
  readonly clock?: Clock;
}

/**
 * An image that was pushed to the platform: its manifests, configs and layers are the tenant's assets, found by their
 * digests. Nothing but the tenant's own is looked at, so that naming a digest never opens what another one pushed.
 */
export class PushedImage implements ImageSource {
  readonly name: string;
  readonly registry = undefined;
  readonly #assets: Client<typeof AssetService>;
  readonly #tenantId: TenantId;
  readonly #digest: string;
  readonly #clock: Clock;

  constructor({ assets, tenantId, repository, digest, clock = systemClock }: PushedImageOptions) {
    this.name = `${repository}@${digest}`;
    this.#assets = assets;
    this.#tenantId = tenantId;
    this.#digest = digest;
    this.#clock = clock;
  }

  async root(signal: AbortSignal): Promise<FetchedDocument> {
    const digest = parseDigest(this.#digest);
    const asset = await this.#mustFind(digest, signal);
    const descriptor = {
      mediaType: "",
      digest,
      sizeBytes: Number(asset.sizeBytes),
      platform: undefined,
      annotations: {},
    };
    return { bytes: await this.#small(descriptor, "the manifest", signal), digest, mediaType: undefined };
  }

  async document(descriptor: Descriptor, signal: AbortSignal): Promise<FetchedDocument> {
    const bytes = await this.#small(descriptor, "the manifest", signal);
    return { bytes, digest: descriptor.digest, mediaType: descriptor.mediaType };
  }

  async config(descriptor: Descriptor, signal: AbortSignal): Promise<Uint8Array> {
    return this.#small(descriptor, "the config", signal);
  }

  async *openLayer(descriptor: Descriptor, { signal, onBytes }: FetchOptions): AsyncGenerator<Uint8Array> {
    let bytes = 0;
    for await (const chunk of verified(this.#read(descriptor, signal), descriptor, "the layer")) {
      onBytes?.((bytes += chunk.length));
      yield chunk;
    }
  }

  async canRead(descriptor: Descriptor, signal: AbortSignal): Promise<boolean> {
    return (await this.#find(descriptor.digest, signal)) !== undefined;
  }

  /** Tags are the gateway's to know. */
  related(): undefined {
    return undefined;
  }

  async #small(descriptor: Descriptor, what: string, signal: AbortSignal): Promise<Uint8Array> {
    if (descriptor.sizeBytes > maxDocumentBytes) {
      throw new ServiceError("IMAGE_TOO_LARGE", `${what} is larger than ${formatBytes(maxDocumentBytes)}`);
    }
    return collectVerified(this.#read(descriptor, signal), descriptor, what);
  }

  /** The bytes in order; a transfer that breaks off goes on where it was. */
  async *#read({ digest }: Descriptor, signal: AbortSignal): AsyncGenerator<Uint8Array> {
    const { assetId } = await this.#mustFind(digest, signal);
    let offset = 0;
    for (let attempt = 1; ; attempt++) {
      const before = offset;
      try {
        const request = { tenantId: this.#tenantId, assetId, offset: BigInt(offset) };
        for await (const { chunk } of this.#assets.downloadAsset(request, callOptions({ signal }))) {
          offset += chunk.byteLength;
          yield chunk;
        }
        return;
      } catch (error) {
        if (offset > before) attempt = 1;
        if (attempt >= attempts || !isServiceError(error) || error.code !== "unavailable") throw error;
        await this.#clock.sleep(backoffDelayMs(backoff, attempt - 1), signal);
      }
    }
  }

  async #mustFind(digest: string, signal: AbortSignal): Promise<Asset> {
    const asset = await this.#find(digest, signal);
    if (asset) return asset;
    throw new ServiceError("IMAGE_NOT_FOUND", `${this.name} lacks ${digest}, which was deleted`, {
      nextStep: "Push the image again.",
    });
  }

  async #find(digest: string, signal: AbortSignal): Promise<Asset | undefined> {
    if (!digest.startsWith("sha256:")) return undefined;
    const { assets } = await this.#assets.listAssets(
      { tenantId: this.#tenantId, kind: AssetKind.IMAGE_BLOB, digest, pageSize: 100 },
      callOptions({ signal, timeoutMs: callTimeoutMs }),
    );
    return assets.find((asset) => asset.tenantId === this.#tenantId && asset.state === AssetState.AVAILABLE);
  }
}
