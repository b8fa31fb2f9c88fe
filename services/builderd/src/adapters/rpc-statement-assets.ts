import { createHash } from "node:crypto";
import type { MessageInitShape } from "@bufbuild/protobuf";
import type { Client } from "@connectrpc/connect";
import { type Asset, AssetKind, type AssetService, AssetState, type UploadAssetRequestSchema } from "@unkey/api/asset";
import {
  type AssetId,
  backoffDelayMs,
  type Clock,
  isServiceError,
  mib,
  parseId,
  ServiceError,
  type TenantId,
} from "@unkey/base";
import { callOptions } from "@unkey/rpc";
import type {
  NewStatement,
  ReadBytes,
  RootfsAsset,
  StatementAsset,
  StatementAssets,
  StatementKind,
} from "../attest/statement-assets.ts";

/** Of an EROFS image the block with its superblock. */
const headBytes = 4096;
const callTimeoutMs = 30_000;
const attempts = 4;
const backoff = { baseMs: 250, maxMs: 5_000 };
const maxAttached = 16;
const kinds: Readonly<Record<StatementKind, AssetKind>> = { provenance: AssetKind.PROVENANCE, sbom: AssetKind.SBOM };

/** assetmanagerd through its RPCs; builderd vouches for the tenant itself, as it does for root filesystems. */
export class RpcStatementAssets implements StatementAssets {
  readonly #client: Client<typeof AssetService>;
  readonly #clock: Clock;

  constructor(client: Client<typeof AssetService>, clock: Clock) {
    this.#client = client;
    this.#clock = clock;
  }

  async rootfs(tenantId: TenantId, assetId: AssetId, signal: AbortSignal): Promise<RootfsAsset | undefined> {
    try {
      const asset = await this.#client.getAsset(
        { tenantId, assetId },
        callOptions({ signal, timeoutMs: callTimeoutMs }),
      );
      const isWhole = [asset, ...asset.parts].every(({ state }) => state === AssetState.AVAILABLE);
      if (!isWhole || asset.kind !== AssetKind.ROOTFS) return undefined;
      const parts = asset.parts.map(({ assetId: partId, digest }) => ({
        assetId: parseId("asset", partId, "parts.asset_id"),
        digest,
      }));
      return { ...statementOf(asset), parts };
    } catch (error) {
      if (isServiceError(error) && error.code === "not_found") return undefined;
      throw error;
    }
  }

  async attached(tenantId: TenantId, attachedTo: AssetId, kind: StatementKind, signal: AbortSignal) {
    const { assets } = await this.#client.listAssets(
      { tenantId, kind: kinds[kind], attachedTo, pageSize: maxAttached },
      callOptions({ signal, timeoutMs: callTimeoutMs }),
    );
    return assets
      .filter((asset) => asset.attachedTo === attachedTo && asset.state === AssetState.AVAILABLE)
      .map(statementOf);
  }

  async read(tenantId: TenantId, assetId: AssetId, maxBytes: number, signal: AbortSignal): Promise<Buffer> {
    const chunks: Uint8Array[] = [];
    let bytes = 0;
    const options = callOptions({ signal, timeoutMs: callTimeoutMs });
    for await (const { chunk } of this.#client.downloadAsset({ tenantId, assetId }, options)) {
      bytes += chunk.length;
      if (bytes > maxBytes) {
        throw new ServiceError("ASSET_TOO_LARGE", `${assetId} has more than ${maxBytes} bytes, too many to be read`);
      }
      chunks.push(chunk);
    }
    return Buffer.concat(chunks);
  }

  async readAgain(tenantId: TenantId, assetId: AssetId, signal: AbortSignal): Promise<ReadBytes> {
    const hash = createHash("sha256");
    const head = Buffer.alloc(headBytes);
    let bytes = 0;
    for await (const { chunk } of this.#client.downloadAsset({ tenantId, assetId }, callOptions({ signal }))) {
      hash.update(chunk);
      if (bytes < headBytes) head.set(chunk.subarray(0, headBytes - bytes), bytes);
      bytes += chunk.length;
    }
    return { digest: `sha256:${hash.digest("hex")}`, head: head.subarray(0, bytes) };
  }

  async store(statement: NewStatement, signal: AbortSignal): Promise<StatementAsset> {
    for (let attempt = 1; ; attempt++) {
      try {
        return statementOf(await this.#client.uploadAsset(parts(statement), callOptions({ signal })));
      } catch (error) {
        if (attempt === attempts || !isServiceError(error) || error.code !== "unavailable") throw error;
        await this.#clock.sleep(backoffDelayMs(backoff, attempt - 1), signal);
      }
    }
  }
}

function statementOf({ assetId, digest, sizeBytes }: Asset): StatementAsset {
  return { assetId: parseId("asset", assetId, "asset_id"), digest, sizeBytes: Number(sizeBytes) };
}

async function* parts({
  tenantId,
  attachedTo,
  kind,
  name,
  bytes,
}: NewStatement): AsyncGenerator<MessageInitShape<typeof UploadAssetRequestSchema>> {
  const digest = `sha256:${createHash("sha256").update(bytes).digest("hex")}`;
  const header = { tenantId, name, kind: kinds[kind], digest, sizeBytes: BigInt(bytes.length), attachedTo };
  yield { part: { case: "header", value: header } };
  for (let offset = 0; offset < bytes.length; offset += mib) {
    yield { part: { case: "chunk", value: bytes.subarray(offset, offset + mib) } };
  }
}
