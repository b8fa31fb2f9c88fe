import { createHash } from "node:crypto";
import { createReadStream } from "node:fs";
import type { MessageInitShape } from "@bufbuild/protobuf";
import type { Client } from "@connectrpc/connect";
import { type Asset, AssetKind, AssetService, AssetState, type UploadAssetRequestSchema } from "@unkey/api/asset";
import { backoffDelayMs, type Clock, isServiceError, mib, parseId } from "@unkey/base";
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
    for (let attempt = 1; ; attempt++) {
      try {
        const asset = (await this.#handOver(file, signal)) ?? (await this.#send(file, signal, onBytes));
        onBytes(sizeBytes, sizeBytes);
        return { assetId: parseId("asset", asset.assetId, "asset_id"), digest: asset.digest };
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
    const { tenantId, uploadKey, name, path, sizeBytes, labels } = file;
    const options = callOptions({ signal });
    let upload: Asset | undefined;
    try {
      const wish = { tenantId, uploadKey, name, kind: AssetKind.ROOTFS, labels: { ...labels } };
      upload = await this.#client.beginUpload(wish, options);
      if (upload.state === AssetState.AVAILABLE) return upload; // an earlier try of the same build
      const { assetId } = upload;
      async function* header() {
        yield { part: { case: "header" as const, value: { tenantId, assetId, offset: 0n, sourcePath: path } } };
      }
      if (upload.receivedBytes === 0n) await this.#client.appendUpload(header(), options);
      return await this.#client.finishUpload({ tenantId, assetId, sizeBytes: BigInt(sizeBytes) }, options);
    } catch (error) {
      if (!isServiceError(error, "ASSET_SOURCE_REFUSED") && !isServiceError(error, "UNIMPLEMENTED")) throw error;
      if (upload !== undefined) await this.#client.cancelUpload({ tenantId, assetId: upload.assetId }, options);
      return undefined;
    }
  }

  async #send(file: RootfsFile, signal: AbortSignal, onBytes: (done: number, total: number) => void): Promise<Asset> {
    const hash = createHash("sha256");
    for await (const chunk of chunksOf(file.path)) {
      signal.throwIfAborted();
      hash.update(chunk);
    }
    const digest = `sha256:${hash.digest("hex")}`;
    const found = await this.#find(file, digest, signal);
    if (found !== undefined) return found;
    return this.#client.uploadAsset(parts(file, digest, onBytes), callOptions({ signal }));
  }

  /** What an earlier try stored before its process died. */
  async #find({ tenantId, labels }: RootfsFile, digest: string, signal: AbortSignal): Promise<Asset | undefined> {
    const { assets } = await this.#client.listAssets(
      { tenantId, kind: AssetKind.ROOTFS, labels: { ...labels }, digest, pageSize: 10 },
      callOptions({ signal, timeoutMs: callTimeoutMs }),
    );
    return assets.find(
      (asset) => asset.tenantId === tenantId && asset.digest === digest && asset.state === AssetState.AVAILABLE,
    );
  }
}

async function* parts(
  { tenantId, name, path, sizeBytes, labels }: RootfsFile,
  digest: string,
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
  for await (const chunk of chunksOf(path)) {
    yield { part: { case: "chunk", value: chunk } };
    done += chunk.length;
    onBytes(done, sizeBytes);
  }
}

function chunksOf(path: string): AsyncIterable<Buffer> {
  return createReadStream(path, { highWaterMark: chunkBytes });
}
