import assert from "node:assert/strict";
import { createHash } from "node:crypto";
import { test } from "node:test";
import { gzipSync } from "node:zlib";
import { AssetKind, AssetService, AssetState } from "@unkey/api/asset";
import { type Clock, isServiceError, newId, ServiceError, systemClock, type TenantId } from "@unkey/base";
import { type Descriptor, defaultImageLimits, parseDigest, resolveImage, resolveManifest } from "@unkey/oci";
import { inMemoryClient } from "@unkey/rpc";
import { PushedImage } from "./pushed-image.ts";

const { signal } = new AbortController();
const amd64 = { os: "linux", architecture: "amd64", variant: "" };
const eager: Clock = { ...systemClock, sleep: async () => undefined, nowMs: () => 0 };
const digestOf = (bytes: Uint8Array) => `sha256:${createHash("sha256").update(bytes).digest("hex")}`;
const hasReason = (reason: Parameters<typeof isServiceError>[1]) => (error: unknown) => isServiceError(error, reason);

interface Stored {
  readonly tenantId: TenantId;
  readonly assetId: string;
  readonly digest: string;
  bytes: Buffer;
}

/** As much of assetmanagerd as an image is read through. */
class Assets {
  readonly stored: Stored[] = [];
  /** A transfer breaks off after so many chunks, so often. */
  breaks = 0;
  readonly offsets: number[] = [];
  readonly client = inMemoryClient(AssetService, {
    caller: { service: "builderd" },
    routes: (router) => {
      const { stored, offsets } = this;
      const breaksOff = () => this.breaks-- > 0;
      router.service(AssetService, {
        listAssets: ({ tenantId, kind, digest }) => ({
          assets: this.stored
            .filter((each) => kind === AssetKind.IMAGE_BLOB && each.tenantId === tenantId && each.digest === digest)
            .map(({ assetId, bytes }) => ({
              assetId,
              tenantId,
              digest,
              sizeBytes: BigInt(bytes.length),
              state: AssetState.AVAILABLE,
            })),
        }),
        downloadAsset: async function* (this: void, { tenantId, assetId, offset }) {
          const asset = stored.find((each) => each.assetId === assetId && each.tenantId === tenantId);
          if (!asset) throw new ServiceError("ASSET_NOT_FOUND", "there is none");
          offsets.push(Number(offset));
          const breaking = breaksOff();
          for (let at = Number(offset); at < asset.bytes.length; at += 100) {
            yield { chunk: asset.bytes.subarray(at, at + 100) };
            if (breaking) throw new ServiceError("DEPENDENCY_UNAVAILABLE", "broken on purpose");
          }
        },
      });
    },
  });

  add(tenantId: TenantId, bytes: Buffer): Buffer {
    this.stored.push({ tenantId, assetId: newId("asset"), digest: digestOf(bytes), bytes });
    return bytes;
  }
}

const described = (bytes: Buffer, mediaType: string, more = {}) => ({
  mediaType,
  digest: digestOf(bytes),
  size: bytes.length,
  ...more,
});

/** An index of two platforms, pushed by a tenant. */
function pushed(assets: Assets, tenantId: TenantId) {
  const plain = Buffer.alloc(1024); // two empty blocks: a tar archive of nothing
  const layer = assets.add(tenantId, gzipSync(plain));
  const manifestFor = (architecture: string) => {
    const config = assets.add(
      tenantId,
      Buffer.from(
        JSON.stringify({
          os: "linux",
          architecture,
          config: { Cmd: ["/app"] },
          rootfs: { type: "layers", diff_ids: [digestOf(plain)] },
        }),
      ),
    );
    return assets.add(
      tenantId,
      Buffer.from(
        JSON.stringify({
          schemaVersion: 2,
          mediaType: "application/vnd.oci.image.manifest.v1+json",
          config: described(config, "application/vnd.oci.image.config.v1+json"),
          layers: [described(layer, "application/vnd.oci.image.layer.v1.tar+gzip")],
        }),
      ),
    );
  };
  const members = ["arm64", "amd64"].map((architecture) => ({ architecture, bytes: manifestFor(architecture) }));
  const index = assets.add(
    tenantId,
    Buffer.from(
      JSON.stringify({
        schemaVersion: 2,
        mediaType: "application/vnd.oci.image.index.v1+json",
        manifests: members.map(({ architecture, bytes }) =>
          described(bytes, "application/vnd.oci.image.manifest.v1+json", { platform: { os: "linux", architecture } }),
        ),
      }),
    ),
  );
  return { index, layer, own: members[1]?.bytes ?? Buffer.alloc(0) };
}

const open = (assets: Assets, tenantId: TenantId, digest: string) =>
  new PushedImage({ assets: assets.client, tenantId, repository: "team/app", digest, clock: eager });

const layerOf = (bytes: Buffer): Descriptor => ({
  mediaType: "application/vnd.oci.image.layer.v1.tar+gzip",
  digest: parseDigest(digestOf(bytes)),
  sizeBytes: bytes.length,
  platform: undefined,
  annotations: {},
});

async function collect(chunks: AsyncIterable<Uint8Array>): Promise<Buffer> {
  const parts: Uint8Array[] = [];
  for await (const chunk of chunks) parts.push(chunk);
  return Buffer.concat(parts);
}

test("an index leads to this platform's image, its config and its layers", async () => {
  const [assets, tenantId] = [new Assets(), newId("tenant")];
  const { index, layer, own } = pushed(assets, tenantId);
  const source = open(assets, tenantId, digestOf(index));
  assert.equal(source.name, `team/app@${digestOf(index)}`);
  const manifest = await resolveManifest(source, amd64, signal);
  assert.equal(manifest.digest, digestOf(own));
  const image = await resolveImage(source, manifest, amd64, defaultImageLimits, signal);
  assert.deepEqual(image.config.argv, ["/app"]);
  const [only] = image.layers;
  assert.ok(only);
  const seen: number[] = [];
  const bytes = await collect(source.openLayer(only.descriptor, { signal, onBytes: (done) => seen.push(done) }));
  assert.deepEqual(bytes, layer);
  assert.equal(seen.at(-1), layer.length);
  assert.equal(await source.canRead(only.descriptor, signal), true);
});

test("another tenant's bytes do not exist, whoever names their digests", async () => {
  const [assets, owner, other] = [new Assets(), newId("tenant"), newId("tenant")];
  const { index, layer } = pushed(assets, owner);
  const source = open(assets, other, digestOf(index));
  await assert.rejects(source.root(signal), hasReason("IMAGE_NOT_FOUND"));
  assert.equal(await source.canRead(layerOf(layer), signal), false);
  await assert.rejects(collect(source.openLayer(layerOf(layer), { signal })), hasReason("IMAGE_NOT_FOUND"));
});

test("bytes that are not those of their digest are refused", async () => {
  const [assets, tenantId] = [new Assets(), newId("tenant")];
  const { index, layer } = pushed(assets, tenantId);
  const source = open(assets, tenantId, digestOf(index));
  const stored = assets.stored.find(({ digest }) => digest === digestOf(layer)) ?? assert.fail("no layer");
  for (const wrong of [Buffer.alloc(layer.length), layer.subarray(1), Buffer.concat([layer, Buffer.from("x")])]) {
    stored.bytes = wrong;
    await assert.rejects(collect(source.openLayer(layerOf(layer), { signal })), hasReason("IMAGE_DIGEST_MISMATCH"));
  }
});

test("a transfer that breaks off goes on where it was", async () => {
  const [assets, tenantId] = [new Assets(), newId("tenant")];
  const layer = assets.add(tenantId, Buffer.alloc(1000, "layer"));
  const source = open(assets, tenantId, digestOf(layer));
  assets.breaks = 3;
  assert.deepEqual(await collect(source.openLayer(layerOf(layer), { signal })), layer);
  assert.deepEqual(assets.offsets, [0, 100, 200, 300]);
});
