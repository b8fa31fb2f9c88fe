import type { MessageInitShape } from "@bufbuild/protobuf";
import type { CallOptions, Client } from "@connectrpc/connect";
import { type AppendUploadRequestSchema, type Asset, AssetKind, AssetService, AssetState } from "@unkey/api/asset";
import { type AssetId, isServiceError, parseId, type TenantId } from "@unkey/base";
import type { RpcChannel } from "@unkey/rpc";
import type { Acting, CallLimits } from "../adapters/platform.ts";
import type { StoredBlob } from "./blob-store.ts";
import type { Sha256 } from "./digest.ts";

const callTimeoutMs = 30_000;
/** The whole blob may be read once more before it counts. */
export const finishTimeoutMs = 10 * 60_000;
/** One name for all, so that equal bytes are one asset whichever repository they were pushed to. */
const assetName = "image blob";

export interface PendingBytes {
  readonly assetId: AssetId;
  readonly receivedBytes: number;
}

type CallOf = (acting: Acting, limits: CallLimits) => CallOptions;

/** What a call is made for, and when to give it up. */
export interface ByteCall {
  readonly acting: Acting;
  readonly signal: AbortSignal;
}

/** Keeps the registry's bytes in assetmanagerd. The tenant is always the caller's own. */
export class AssetBytes {
  readonly #assets: Client<typeof AssetService>;
  readonly #call: CallOf;

  constructor(deps: { readonly channel: RpcChannel; readonly call: CallOf }) {
    this.#assets = deps.channel.client(AssetService);
    this.#call = deps.call;
  }

  /** Begins an upload, or finds the one that the key began. */
  async begin(call: ByteCall, uploadKey: string): Promise<PendingBytes> {
    const { tenantId } = call.acting;
    return toPending(
      await this.#assets.beginUpload(
        { tenantId, uploadKey, name: assetName, kind: AssetKind.IMAGE_BLOB, keep: true },
        this.#unary(call),
      ),
    );
  }

  /** Undefined when the upload is gone. */
  async find(call: ByteCall, assetId: AssetId): Promise<PendingBytes | undefined> {
    try {
      const asset = await this.#assets.getAsset({ tenantId: call.acting.tenantId, assetId }, this.#unary(call));
      return toPending(asset);
    } catch (error) {
      if (isServiceError(error, "ASSET_NOT_FOUND")) return undefined;
      throw error;
    }
  }

  /** Adds bytes at `offset`; answers how many are there then. Throws UPLOAD_OFFSET_MISMATCH. */
  async append(
    call: ByteCall,
    assetId: AssetId,
    offset: number,
    chunks: AsyncIterable<Uint8Array>,
  ): Promise<PendingBytes> {
    const { tenantId } = call.acting;
    async function* parts(): AsyncGenerator<MessageInitShape<typeof AppendUploadRequestSchema>> {
      yield { part: { case: "header", value: { tenantId, assetId, offset: BigInt(offset) } } };
      for await (const chunk of chunks) yield { part: { case: "chunk", value: chunk } };
    }
    return toPending(await this.#assets.appendUpload(parts(), this.#call(call.acting, { signal: call.signal })));
  }

  /** Checks the whole upload; answers the asset that holds the bytes. Throws ASSET_DIGEST_MISMATCH. */
  async finish(call: ByteCall, assetId: AssetId, digest: Sha256, sizeBytes: number): Promise<StoredBlob> {
    const { acting, signal } = call;
    const asset = await this.#assets.finishUpload(
      { tenantId: acting.tenantId, assetId, digest, sizeBytes: BigInt(sizeBytes) },
      this.#call(acting, { signal, timeoutMs: finishTimeoutMs }),
    );
    return { digest, assetId: parseId("asset", asset.assetId, "asset_id"), sizeBytes };
  }

  /** The tenant's asset of that content, if it is there. */
  async byDigest(call: ByteCall, digest: Sha256): Promise<StoredBlob | undefined> {
    const { tenantId } = call.acting;
    const { assets } = await this.#assets.listAssets(
      { tenantId, kind: AssetKind.IMAGE_BLOB, digest, pageSize: 100 },
      this.#unary(call),
    );
    const asset = assets.find((each) => each.tenantId === tenantId && each.state === AssetState.AVAILABLE);
    return (
      asset && { digest, assetId: parseId("asset", asset.assetId, "asset_id"), sizeBytes: Number(asset.sizeBytes) }
    );
  }

  async cancel(call: ByteCall, assetId: AssetId): Promise<void> {
    await this.#assets.cancelUpload({ tenantId: call.acting.tenantId, assetId }, this.#unary(call));
  }

  async *read(call: ByteCall, assetId: AssetId, offset: number): AsyncGenerator<Uint8Array> {
    const { acting, signal } = call;
    const stream = this.#assets.downloadAsset(
      { tenantId: acting.tenantId, assetId, offset: BigInt(offset) },
      this.#call(acting, { signal }),
    );
    for await (const { chunk } of stream) yield chunk;
  }

  /** Gives an asset up; one that is gone is success. */
  async delete(call: ByteCall, tenantId: TenantId, assetId: AssetId): Promise<void> {
    try {
      await this.#assets.deleteAsset({ tenantId, assetId }, this.#unary(call));
    } catch (error) {
      if (!isServiceError(error, "ASSET_NOT_FOUND")) throw error;
    }
  }

  #unary({ acting, signal }: ByteCall) {
    return this.#call(acting, { signal, timeoutMs: callTimeoutMs });
  }
}

function toPending(asset: Asset): PendingBytes {
  const received = asset.state === AssetState.UPLOADING ? asset.receivedBytes : asset.sizeBytes;
  return { assetId: parseId("asset", asset.assetId, "asset_id"), receivedBytes: Number(received) };
}
