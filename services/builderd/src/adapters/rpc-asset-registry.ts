import { createReadStream } from "node:fs";
import type { MessageInitShape } from "@bufbuild/protobuf";
import type { Client } from "@connectrpc/connect";
import {
  type AppendUploadRequestSchema,
  AssetKind,
  AssetService,
  AssetState,
  type BeginUploadRequestSchema,
} from "@unkey/api/asset";
import { backoffDelayMs, type Clock, isServiceError, mib, parseId, type TenantId } from "@unkey/base";
import { callOptions, type RpcChannel } from "@unkey/rpc";
import type { AssetRegistry, LayerFile, RootfsFile, StoredFile } from "../ports.ts";
import { PushedImage, type PushedImageOptions } from "./pushed-image.ts";

const chunkBytes = mib;
const callTimeoutMs = 30_000;
const attempts = 4;
const backoff = { baseMs: 250, maxMs: 5_000 };

/**
 * assetmanagerd through its RPCs. The calls carry no principal: a build outlives the token it was asked with, so builderd
 * vouches for the tenant itself.
 */
export class RpcAssetRegistry implements AssetRegistry {
  readonly #channel: RpcChannel;
  readonly #client: Client<typeof AssetService>;
  readonly #clock: Clock;

  constructor(channel: RpcChannel, clock: Clock) {
    this.#channel = channel;
    this.#client = channel.client(AssetService);
    this.#clock = clock;
  }

  async storeRootfs(file: RootfsFile, signal: AbortSignal, onBytes: OnBytes) {
    const { tenantId, uploadKey, name, labels, partIds } = file;
    const wish = { tenantId, uploadKey, name, kind: AssetKind.ROOTFS, labels: { ...labels }, partIds: [...partIds] };
    return this.#store(wish, file, signal, onBytes);
  }

  async storeLayer(file: LayerFile, signal: AbortSignal) {
    const { tenantId, uploadKey, name, knownDigest } = file;
    const found = knownDigest === undefined ? undefined : await this.#findLayer(tenantId, knownDigest, signal);
    return found ?? this.#store({ tenantId, uploadKey, name, kind: AssetKind.LAYER }, file, signal, () => undefined);
  }

  pushedImage(image: Omit<PushedImageOptions, "assets" | "clock">): PushedImage {
    return new PushedImage({ ...image, assets: this.#client, clock: this.#clock });
  }

  /** Throws while assetmanagerd does not answer. */
  async check(): Promise<void> {
    await this.#channel.ping();
  }

  async #store(
    wish: MessageInitShape<typeof BeginUploadRequestSchema>,
    file: { readonly path: string; readonly sizeBytes: number },
    signal: AbortSignal,
    onBytes: OnBytes,
  ): Promise<StoredFile> {
    for (let attempt = 1; ; attempt++) {
      try {
        const stored = await this.#upload(wish, file, signal, onBytes);
        onBytes(file.sizeBytes, file.sizeBytes);
        return stored;
      } catch (error) {
        if (attempt === attempts || !isServiceError(error) || error.code !== "unavailable") throw error;
        await this.#clock.sleep(backoffDelayMs(backoff, attempt - 1), signal);
      }
    }
  }

  /** Goes on where an earlier try of the same key ended. The digest is counted by assetmanagerd alone. */
  async #upload(
    wish: MessageInitShape<typeof BeginUploadRequestSchema>,
    { path, sizeBytes }: { readonly path: string; readonly sizeBytes: number },
    signal: AbortSignal,
    onBytes: OnBytes,
  ): Promise<StoredFile> {
    const options = callOptions({ signal });
    const { assetId, tenantId, state, receivedBytes, digest } = await this.#client.beginUpload(wish, options);
    if (state === AssetState.AVAILABLE) return storedFile({ assetId, digest });
    const received = Number(receivedBytes);
    if (received < sizeBytes || received === 0) {
      const address = { tenantId, assetId, offset: receivedBytes };
      if (received > 0 || !(await this.#handOver(address, path, signal))) {
        await this.#client.appendUpload(chunks(address, path, sizeBytes, onBytes), options);
      }
    }
    return storedFile(await this.#client.finishUpload({ tenantId, assetId, sizeBytes: BigInt(sizeBytes) }, options));
  }

  /** Where assetmanagerd is on this host and takes our files, nothing is sent; false where it does not. */
  async #handOver(address: UploadAddress, sourcePath: string, signal: AbortSignal): Promise<boolean> {
    async function* header() {
      yield { part: { case: "header" as const, value: { ...address, sourcePath } } };
    }
    try {
      await this.#client.appendUpload(header(), callOptions({ signal }));
      return true;
    } catch (error) {
      if (isServiceError(error, "ASSET_SOURCE_REFUSED")) return false;
      throw error;
    }
  }

  async #findLayer(tenantId: TenantId, digest: string, signal: AbortSignal): Promise<StoredFile | undefined> {
    const { assets } = await this.#client.listAssets(
      { tenantId, kind: AssetKind.LAYER, digest, pageSize: 10 },
      callOptions({ signal, timeoutMs: callTimeoutMs }),
    );
    const found = assets.find((asset) => asset.tenantId === tenantId && asset.state === AssetState.AVAILABLE);
    return found === undefined ? undefined : storedFile(found);
  }
}

type UploadAddress = { readonly tenantId: string; readonly assetId: string; readonly offset: bigint };
type OnBytes = (done: number, total: number) => void;

function storedFile({ assetId, digest }: { readonly assetId: string; readonly digest: string }): StoredFile {
  return { assetId: parseId("asset", assetId, "asset_id"), digest };
}

async function* chunks(
  address: UploadAddress,
  path: string,
  sizeBytes: number,
  onBytes: OnBytes,
): AsyncGenerator<MessageInitShape<typeof AppendUploadRequestSchema>> {
  yield { part: { case: "header", value: address } };
  let done = Number(address.offset);
  const file = createReadStream(path, { start: done, highWaterMark: chunkBytes }) as AsyncIterable<Buffer>;
  for await (const chunk of file) {
    yield { part: { case: "chunk", value: chunk } };
    done += chunk.length;
    onBytes(done, sizeBytes);
  }
}
