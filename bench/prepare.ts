import { createHash } from "node:crypto";
import { join } from "node:path";
import { AssetKind } from "@unkey/api/asset";
import { newId } from "@unkey/base";
import { type Figure, median } from "./figure.ts";
import { openAssetDaemon } from "./support/asset-daemon.ts";

const assetCount = 10_000;
const rounds = 5;
const preparationsPerRound = 1000;
const uploadsAtOnce = 8;

/**
 * With 10,000 assets in the catalog, all uploaded: staging a kernel, an initial ramdisk and a root filesystem for one VM after
 * another, into a directory of its own, as metald does it: one RPC over mutual TLS, in which a lease is committed, the files
 * are found unchanged and hard-linked. The time is the caller's, from the call to the answer; the figure, the median of rounds.
 */
export async function* run(): AsyncGenerator<Figure> {
  await using daemon = openAssetDaemon();
  await daemon.start();
  const builderd = daemon.client("builderd");
  const kinds = [AssetKind.KERNEL, AssetKind.INITRD, AssetKind.ROOTFS] as const;
  const fileNames = ["kernel", "initrd", "rootfs"];
  const tenantId = newId("tenant");
  const ids = new Map<AssetKind, string[]>(kinds.map((kind) => [kind, []]));
  let next = 0;
  const uploader = async () => {
    for (let i = next++; i < assetCount; i = next++) {
      const kind = kinds[i % kinds.length] ?? AssetKind.ROOTFS;
      const { assetId } = await builderd.uploadAsset(upload(tenantId, kind, i));
      ids.get(kind)?.push(assetId);
    }
  };
  await Promise.all(Array.from({ length: uploadsAtOnce }, uploader));
  console.error(`${assetCount} assets uploaded`);

  const metald = daemon.client("metald");
  const prepare = async (vm: number): Promise<number> => {
    const placements = kinds.map((kind, index) => ({
      assetId: ids.get(kind)?.[(vm * 7919) % Math.floor(assetCount / kinds.length)] ?? "",
      fileName: fileNames[index] ?? "",
    }));
    const targetDir = join(daemon.stagingRoot, `vm_${vm}`);
    const startMs = performance.now();
    await metald.prepareAssets({ tenantId, leaseKey: `vm_${vm}`, placements, targetDir, leaseMs: 600_000n });
    return performance.now() - startMs;
  };
  let vm = 0;
  while (vm < 50) await prepare(vm++); // the first ones compile code
  const tails: number[] = [];
  for (let round = 0; round < rounds; round++) {
    const times: number[] = [];
    while (times.length < preparationsPerRound) times.push(await prepare(vm++));
    times.sort((a, b) => a - b);
    const quantile = (q: number) => Math.round((times[Math.floor((times.length - 1) * q)] ?? 0) * 100) / 100;
    console.error(`p50 ${quantile(0.5)} ms, p90 ${quantile(0.9)}, p99 ${quantile(0.99)}, longest ${quantile(1)} ms`);
    tails.push(quantile(0.99));
  }
  yield { name: "prepare.three_assets_p99", value: median(tails), unit: "ms", goal: 5 };
}

function upload(tenantId: string, kind: AssetKind, index: number) {
  const content = Buffer.from(`asset ${index} `.repeat(100));
  const digest = `sha256:${createHash("sha256").update(content).digest("hex")}`;
  const labels = { app: `app-${index % 100}` };
  const header = { tenantId, name: `asset ${index % 1000}`, kind, digest, sizeBytes: BigInt(content.length), labels };
  return (async function* () {
    yield await Promise.resolve({ part: { case: "header" as const, value: header } });
    yield { part: { case: "chunk" as const, value: content } };
  })();
}
