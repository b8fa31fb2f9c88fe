import { createReadStream } from "node:fs";
import { basename } from "node:path";
import type { MessageInitShape } from "@bufbuild/protobuf";
import type { Client } from "@connectrpc/connect";
import { AssetKind, AssetService, AssetState, type UploadAssetRequestSchema } from "@unkey/api/asset";
import { type AssetId, backoffDelayMs, type Clock, isServiceError, mib, parseId, type TenantId } from "@unkey/base";
import { StreamingDigest } from "@unkey/oci";
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
    const { digest, sizeBytes } = await digestOfFile(file.path, signal);
    const found = await this.#find(file, digest, signal);
    if (found !== undefined) return { assetId: found, sizeBytes };
    for (let attempt = 1; ; attempt++) {
      try {
        const asset = await this.#client.uploadAsset(parts(file, digest, sizeBytes, onBytes), callOptions({ signal }));
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

  async isAvailable(tenantId: TenantId, assetId: AssetId, signal: AbortSignal): Promise<boolean> {
    try {
      const asset = await this.#client.getAsset(
        { tenantId, assetId },
        callOptions({ signal, timeoutMs: callTimeoutMs }),
      );
      return asset.state === AssetState.AVAILABLE;
    } catch (error) {
      if (isServiceError(error) && error.code === "not_found") return false;
      throw error;
    }
  }

  /** Throws while assetmanagerd does not answer. */
  async check(): Promise<void> {
    await this.#channel.ping();
  }

  /** What an earlier try stored before its process died. */
  async #find(file: RootfsFile, digest: string, signal: AbortSignal): Promise<AssetId | undefined> {
    const { tenantId, labels } = file;
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
  { tenantId, name, path, labels }: RootfsFile,
  digest: string,
  sizeBytes: number,
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

async function digestOfFile(path: string, signal: AbortSignal): Promise<{ digest: string; sizeBytes: number }> {
  const digest = new StreamingDigest();
  let sizeBytes = 0;
  for await (const chunk of createReadStream(path, { highWaterMark: chunkBytes }) as AsyncIterable<Buffer>) {
    signal.throwIfAborted();
    digest.update(chunk);
    sizeBytes += chunk.length;
  }
  if (sizeBytes === 0) throw new Error(`${basename(path)} is empty`);
  return { digest: digest.finish(), sizeBytes };
}
