import { createHash } from "node:crypto";
import { mkdir, rm, writeFile } from "node:fs/promises";
import { join } from "node:path";
import { create } from "@bufbuild/protobuf";
import type { ConnectRouter } from "@connectrpc/connect";
import { AssetKind, AssetSchema, AssetService, AssetState, LeaseSchema } from "@unkey/api/asset";
import {
  FrameAckSchema,
  MeteringService,
  type NotifyVmStartedRequest,
  type NotifyVmStoppedRequest,
  type SampleFrame,
} from "@unkey/api/metering";
import { makeSigningKey, provenanceOf } from "@unkey/attest/testing";
import { newId, ServiceError } from "@unkey/base";

const provenancePrefix = "provenance-of-";

/** assetmanagerd as far as metald sees it: every asset is a root filesystem that `signer` vouches for. Files are what `contentOf` answers for an asset. */
export class FakeAssets {
  readonly leases = new Map<string, string>();
  readonly uploads = new Map<string, Uint8Array>();
  failure: ServiceError | undefined;
  contentOf: (assetId: string) => Uint8Array = () => new Uint8Array();
  /** What is staged beside a root filesystem. */
  parts: readonly Uint8Array[] = [];
  readonly signer = makeSigningKey();
  /** Envelopes that are attached to a root filesystem, newest first. */
  provenancesOf: (rootfsDigest: string) => readonly Uint8Array[] = (digest) => [provenanceOf(digest, this.signer)];
  /** Questions about provenance since the start. */
  provenanceCalls = 0;

  readonly routes = (router: ConnectRouter): void => {
    router.service(AssetService, {
      prepareAssets: async ({ leaseKey, placements, targetDir, tenantId }) => {
        if (this.failure) throw this.failure;
        const leaseId = this.leases.get(leaseKey) ?? newId("lease");
        this.leases.set(leaseKey, leaseId);
        await mkdir(targetDir, { recursive: true });
        const staged: { assetId: string; path: string; digest: string }[] = [];
        const place = async (assetId: string, fileName: string, content: Uint8Array) => {
          const path = join(targetDir, fileName);
          await rm(path, { force: true });
          await writeFile(path, content, { mode: 0o444 });
          staged.push({ assetId, path, digest: digestOf(content) });
        };
        for (const { assetId, fileName } of placements) {
          await place(assetId, fileName, this.uploads.get(assetId) ?? this.contentOf(assetId));
          const parts = fileName === "rootfs" ? this.parts : [];
          for (const [index, part] of parts.entries()) await place(newId("asset"), `${fileName}.${index + 1}`, part);
        }
        return { lease: create(LeaseSchema, { leaseId, tenantId, leaseKey }), staged };
      },
      releaseLease: async ({ leaseId }) => {
        for (const [key, id] of this.leases) if (id === leaseId) this.leases.delete(key);
        return {};
      },
      renewLease: async ({ leaseId }) => {
        if (![...this.leases.values()].includes(leaseId)) throw new ServiceError("VM_NOT_FOUND", "no such lease");
        return { leaseId };
      },
      getAsset: async ({ assetId }) => {
        if (this.failure) throw this.failure;
        return { assetId, state: AssetState.AVAILABLE, kind: AssetKind.ROOTFS, digest: this.#digestOf(assetId) };
      },
      listAssets: async ({ kind, attachedTo }) => {
        this.provenanceCalls++;
        const envelopes = kind === AssetKind.PROVENANCE ? this.provenancesOf(this.#digestOf(attachedTo)) : [];
        const assets = envelopes.map((envelope, index) => ({
          assetId: `${provenancePrefix}${attachedTo}-${index}`,
          kind: AssetKind.PROVENANCE,
          state: AssetState.AVAILABLE,
          attachedTo,
          sizeBytes: BigInt(envelope.length),
        }));
        return { assets };
      },
      downloadAsset: (request) => this.#download(request.assetId),
      uploadAsset: async (parts) => {
        const chunks: Uint8Array[] = [];
        for await (const { part } of parts) if (part.case === "chunk") chunks.push(part.value);
        const assetId = newId("asset");
        this.uploads.set(assetId, Buffer.concat(chunks));
        return create(AssetSchema, { assetId, state: AssetState.AVAILABLE });
      },
    });
  };

  #digestOf(assetId: string): string {
    return digestOf(this.contentOf(assetId));
  }

  async *#download(provenanceId: string) {
    const [, assetId = "", index = ""] = new RegExp(`^${provenancePrefix}(.*)-(\\d+)$`).exec(provenanceId) ?? [];
    const envelope = this.provenancesOf(this.#digestOf(assetId))[Number(index)];
    if (envelope === undefined) throw new ServiceError("ASSET_NOT_FOUND", "no such asset");
    yield { chunk: envelope };
  }
}

function digestOf(content: Uint8Array): string {
  return `sha256:${createHash("sha256").update(content).digest("hex")}`;
}

/** billaged as far as metald sees it: takes everything, remembers it, or refuses. */
export class FakeBillaged {
  readonly started: NotifyVmStartedRequest[] = [];
  readonly stopped: NotifyVmStoppedRequest[] = [];
  readonly frames: SampleFrame[] = [];
  /** Thrown by every call while it is set. */
  failure: ServiceError | undefined;
  /** Whether frames are confirmed. */
  confirms = true;
  #cut = new AbortController();

  /** Ends the open streams, as a restart does. */
  disconnect(): void {
    this.#cut.abort();
    this.#cut = new AbortController();
  }

  readonly routes = (router: ConnectRouter): void => {
    router.service(MeteringService, {
      notifyVmStarted: async (request) => {
        if (this.failure) throw this.failure;
        this.started.push(request);
        return {};
      },
      notifyVmStopped: async (request) => {
        if (this.failure) throw this.failure;
        this.stopped.push(request);
        return {};
      },
      streamSamples: (frames) => this.#take(frames),
    });
  };

  async *#take(frames: AsyncIterable<SampleFrame>) {
    const cut = this.#cut.signal;
    const ended = new Promise<"cut">((resolve) => cut.addEventListener("abort", () => resolve("cut")));
    const iterator = frames[Symbol.asyncIterator]();
    for (;;) {
      const next = await Promise.race([iterator.next(), ended]);
      if (this.failure) throw this.failure;
      if (next === "cut" || next.done) return;
      this.frames.push(next.value);
      const { hostEpoch, frameSeq } = next.value;
      if (this.confirms) yield create(FrameAckSchema, { hostEpoch, frameSeq });
    }
  }
}
