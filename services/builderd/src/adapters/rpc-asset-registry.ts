import { createReadStream } from "node:fs";
import type { MessageInitShape } from "@bufbuild/protobuf";
import type { Client } from "@connectrpc/connect";
import { type Asset, AssetKind, AssetService, AssetState, type UploadAssetRequestSchema } from "@unkey/api/asset";
import { type AssetId, backoffDelayMs, type Clock, isServiceError, mib, parseId } from "@unkey/base";
import { callOptions, type RpcChannel } from "@unkey/rpc";
import type { AssetRegistry, RootfsFile } from "../ports.ts";
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

  async store(file: RootfsFile, signal: AbortSignal, onBytes: (done: number, total: number) => void) {
    const { sizeBytes } = file;
    const found = await this.#find(file, signal);
    if (found !== undefined) return { assetId: found, sizeBytes };
    for (let attempt = 1; ; attempt++) {
      try {
        const asset =
          (await this.#handOver(file, signal)) ??
          (await this.#client.uploadAsset(parts(file, onBytes), callOptions({ signal })));
        onBytes(sizeBytes, sizeBytes);
        return { assetId: parseId("asset", asset.assetId, "asset_id"), sizeBytes };
      } catch (error) {
        if (attempt === attempts || !isServiceError(error) || error.code !== "unavailable") throw error;
        await this.#clock.sleep(backoffDelayMs(backoff, attempt - 1), signal);
      }
    }
  }

  pushedImage(image: Omit<PushedImageOptions, "assets" | "clock">): PushedImage {
    return new PushedImage({ ...image, assets: this.#client, clock: this.#clock });
  }

  /** Throws while assetmanagerd does not answer. */
  async check(): Promise<void> {
    await this.#channel.ping();
  }

  /** Where assetmanagerd is on this host and takes our files, nothing is sent; undefined where it does not. */
  async #handOver(file: RootfsFile, signal: AbortSignal): Promise<Asset | undefined> {
    const { tenantId, uploadKey, name, path, digest, sizeBytes, labels } = file;
    const options = callOptions({ signal });
    let upload: Asset | undefined;
    try {
      const wish = { tenantId, uploadKey, name, kind: AssetKind.ROOTFS, labels: { ...labels } };
      upload = await this.#client.beginUpload(wish, options);
      const { assetId } = upload;
      if (upload.state === AssetState.AVAILABLE && upload.digest === digest) return upload;
      async function* header() {
        yield { part: { case: "header" as const, value: { tenantId, assetId, offset: 0n, sourcePath: path } } };
      }
      if (upload.receivedBytes === 0n) await this.#client.appendUpload(header(), options);
      return await this.#client.finishUpload({ tenantId, assetId, digest, sizeBytes: BigInt(sizeBytes) }, options);
    } catch (error) {
      if (!isServiceError(error, "ASSET_SOURCE_REFUSED") && !isServiceError(error, "UNIMPLEMENTED")) throw error;
      if (upload !== undefined) await this.#client.cancelUpload({ tenantId, assetId: upload.assetId }, options);
      return undefined;
    }
  }

  /** What an earlier try stored before its process died. */
  async #find({ tenantId, digest, labels }: RootfsFile, signal: AbortSignal): Promise<AssetId | undefined> {
    const { assets } = await this.#client.listAssets(
      { tenantId, kind: AssetKind.ROOTFS, labels: { ...labels }, pageSize: 10 },
      callOptions({ signal, timeoutMs: callTimeoutMs }),
    );
    const same = assets.find(
      (asset) => asset.tenantId === tenantId && asset.digest === digest && asset.state === AssetState.AVAILABLE,
    );
    return same && parseId("asset", same.assetId, "asset_id");
  }
}

async function* parts(
  { tenantId, name, path, digest, sizeBytes, labels }: RootfsFile,
  onBytes: (done: number, total: number) => void,
): AsyncGenerator<MessageInitShape<typeof UploadAssetRequestSchema>> {
  const header = {
    tenantId,
    name,
    kind: AssetKind.ROOTFS,
    digest,
    sizeBytes: BigInt(sizeBytes),
    labels: { ...labels },
  };
  yield { part: { case: "header", value: header } };
  let done = 0;
  for await (const chunk of createReadStream(path, { highWaterMark: chunkBytes }) as AsyncIterable<Buffer>) {
    yield { part: { case: "chunk", value: chunk } };
    done += chunk.length;
    onBytes(done, sizeBytes);
  }
}
