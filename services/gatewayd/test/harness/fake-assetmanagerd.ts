import { createHash } from "node:crypto";
import { create } from "@bufbuild/protobuf";
import type { ConnectRouter } from "@connectrpc/connect";
import { type Asset, AssetSchema, AssetService, AssetState } from "@unkey/api/asset";
import { newId, ServiceError } from "@unkey/base";

export type AssetMethod =
  | "beginUpload"
  | "appendUpload"
  | "finishUpload"
  | "cancelUpload"
  | "getAsset"
  | "listAssets"
  | "downloadAsset"
  | "deleteAsset";

interface Held {
  readonly asset: Asset;
  readonly key: string;
  bytes: Buffer;
}

/** An assetmanagerd of the contract that keeps assets in memory: as much of it as a registry uses. */
export class FakeAssetmanagerd {
  readonly held = new Map<string, Held>();
  readonly calls: AssetMethod[] = [];
  before: (method: AssetMethod) => Promise<void> | void = () => undefined;
  after: (method: AssetMethod) => Promise<void> | void = () => undefined;

  /** Told of each byte range that a download is about to send. */
  beforeChunk: (from: number) => Promise<void> | void = () => undefined;

  /** An asset that is there already. */
  hold(tenantId: string, bytes: Buffer): string {
    const assetId = newId("asset");
    const sizeBytes = BigInt(bytes.length);
    this.held.set(assetId, {
      asset: create(AssetSchema, { assetId, tenantId, sizeBytes, state: AssetState.AVAILABLE }),
      key: "",
      bytes,
    });
    return assetId;
  }

  /** Assets that can be used, and uploads under way. */
  count(state: AssetState): number {
    return [...this.held.values()].filter(({ asset }) => asset.state === state).length;
  }

  readonly routes = (router: ConnectRouter): void => {
    router.service(AssetService, {
      beginUpload: (request) =>
        this.#verb("beginUpload", () => {
          const { tenantId, uploadKey, name, kind, keep } = request;
          const known = [...this.held.values()].find(
            (each) => each.key === uploadKey && each.asset.tenantId === tenantId,
          );
          if (known) return known.asset;
          const asset = create(AssetSchema, {
            assetId: newId("asset"),
            tenantId,
            name,
            kind,
            keep,
            state: AssetState.UPLOADING,
          });
          this.held.set(asset.assetId, { asset, key: uploadKey, bytes: Buffer.alloc(0) });
          return asset;
        }),
      appendUpload: async (requests) => {
        this.calls.push("appendUpload");
        await this.before("appendUpload");
        let held: Held | undefined;
        for await (const { part } of requests) {
          if (part.case === "header") {
            held = this.#uploading(part.value.tenantId, part.value.assetId);
            if (Number(part.value.offset) !== held.bytes.length) {
              throw new ServiceError("UPLOAD_OFFSET_MISMATCH", `the upload has ${held.bytes.length} bytes`);
            }
          } else if (held && part.case === "chunk") {
            held.bytes = Buffer.concat([held.bytes, part.value]);
            held.asset.receivedBytes = BigInt(held.bytes.length);
          }
        }
        await this.after("appendUpload");
        if (!held) throw new ServiceError("INVALID_REQUEST", "no header");
        return held.asset;
      },
      finishUpload: (request) =>
        this.#verb("finishUpload", () => {
          const { tenantId, assetId, digest, sizeBytes } = request;
          const held = this.#find(tenantId, assetId);
          const actual = `sha256:${createHash("sha256").update(held.bytes).digest("hex")}`;
          if (BigInt(held.bytes.length) !== sizeBytes) throw new ServiceError("ASSET_SIZE_MISMATCH", "wrong size");
          if (actual !== digest) throw new ServiceError("ASSET_DIGEST_MISMATCH", `it is ${actual}`);
          if (held.asset.state === AssetState.AVAILABLE) return held.asset;
          const equal = [...this.held.values()].find(
            ({ asset }) =>
              asset.tenantId === tenantId && asset.digest === digest && asset.state === AssetState.AVAILABLE,
          );
          if (equal) {
            this.held.delete(assetId);
            return equal.asset;
          }
          Object.assign(held.asset, { digest, sizeBytes, state: AssetState.AVAILABLE });
          return held.asset;
        }),
      cancelUpload: ({ tenantId, assetId }) =>
        this.#verb("cancelUpload", () => {
          const held = this.held.get(assetId);
          if (held?.asset.tenantId === tenantId && held.asset.state === AssetState.UPLOADING) this.held.delete(assetId);
          return {};
        }),
      getAsset: ({ tenantId, assetId }) => this.#verb("getAsset", () => this.#find(tenantId, assetId).asset),
      listAssets: ({ tenantId, digest, kind }) =>
        this.#verb("listAssets", () => ({
          assets: [...this.held.values()]
            .map(({ asset }) => asset)
            .filter((asset) => asset.tenantId === tenantId && asset.digest === digest && asset.kind === kind),
        })),
      downloadAsset: (request) => this.#download(request),
      deleteAsset: ({ tenantId, assetId }) =>
        this.#verb("deleteAsset", () => {
          const held = this.#find(tenantId, assetId);
          held.asset.state = AssetState.DELETING;
          return held.asset;
        }),
    });
  };

  async *#download(request: { readonly tenantId: string; readonly assetId: string; readonly offset: bigint }) {
    this.calls.push("downloadAsset");
    await this.before("downloadAsset");
    const { bytes } = this.#find(request.tenantId, request.assetId);
    const step = 64 * 1024;
    for (let from = Number(request.offset); from < bytes.length; from += step) {
      await this.beforeChunk(from);
      yield { chunk: bytes.subarray(from, from + step) };
    }
  }

  #uploading(tenantId: string, assetId: string): Held {
    const held = this.#find(tenantId, assetId);
    if (held.asset.state !== AssetState.UPLOADING) throw new ServiceError("ASSET_NOT_UPLOADING", "it has ended");
    return held;
  }

  #find(tenantId: string, assetId: string): Held {
    const held = this.held.get(assetId);
    if (held?.asset.tenantId !== tenantId || held.asset.state === AssetState.DELETING) {
      throw new ServiceError("ASSET_NOT_FOUND", `there is no asset ${assetId}`);
    }
    return held;
  }

  async #verb<T>(method: AssetMethod, effect: () => T): Promise<T> {
    this.calls.push(method);
    await this.before(method);
    const result = effect();
    await this.after(method);
    return result;
  }
}
