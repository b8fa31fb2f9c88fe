import { createHash } from "node:crypto";
import { createReadStream } from "node:fs";
import { stat } from "node:fs/promises";
import { basename } from "node:path";
import { pipeline } from "node:stream/promises";
import type { MessageInitShape } from "@bufbuild/protobuf";
import type { Client } from "@connectrpc/connect";
import { AssetKind, type AssetService, AssetState, type UploadAssetRequestSchema } from "@unkey/api/asset";
import { isServiceError } from "@unkey/base";
import type { VmStore } from "../ports.ts";
import type { BootAssetIds } from "./rpc-assets.ts";

const chunkBytes = 1024 * 1024;

/**
 * Makes this host's default kernel and initial ramdisk assets of the platform, once per content: which asset holds which
 * file is remembered, and asked about, because assetmanagerd may have lost or collected it.
 */
export async function ensureBootAssets(
  client: Client<typeof AssetService>,
  store: Pick<VmStore, "fact" | "setFact">,
  files: { readonly kernelPath: string; readonly initrdPath: string },
): Promise<BootAssetIds> {
  const kernelAssetId = await ensureAsset(client, store, files.kernelPath, AssetKind.KERNEL);
  const initrdAssetId = await ensureAsset(client, store, files.initrdPath, AssetKind.INITRD);
  return { kernelAssetId, initrdAssetId };
}

async function ensureAsset(
  client: Client<typeof AssetService>,
  store: Pick<VmStore, "fact" | "setFact">,
  path: string,
  kind: AssetKind,
): Promise<string> {
  const digest = await digestOf(path);
  const fact = `boot-asset ${kind} ${digest}`;
  const known = await store.fact(fact);
  if (known !== undefined && (await isAvailable(client, known))) return known;
  const { assetId } = await client.uploadAsset(upload(path, kind, digest));
  await store.setFact(fact, assetId);
  return assetId;
}

async function isAvailable(client: Client<typeof AssetService>, assetId: string): Promise<boolean> {
  try {
    return (await client.getAsset({ assetId })).state === AssetState.AVAILABLE;
  } catch (error) {
    if (isServiceError(error) && error.code === "not_found") return false;
    throw error;
  }
}

async function digestOf(path: string): Promise<string> {
  const hash = createHash("sha256");
  await pipeline(createReadStream(path), hash);
  return `sha256:${hash.digest("hex")}`;
}

async function* upload(
  path: string,
  kind: AssetKind,
  digest: string,
): AsyncGenerator<MessageInitShape<typeof UploadAssetRequestSchema>> {
  const { size } = await stat(path);
  const header = { name: basename(path), kind, digest, sizeBytes: BigInt(size), labels: { purpose: "boot" } };
  yield { part: { case: "header", value: header } };
  for await (const chunk of createReadStream(path, { highWaterMark: chunkBytes })) {
    yield { part: { case: "chunk", value: chunk as Uint8Array } };
  }
}
