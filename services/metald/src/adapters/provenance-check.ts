import { randomBytes } from "node:crypto";
import { open, readFile, rename, rm } from "node:fs/promises";
import type { Client } from "@connectrpc/connect";
import { type Asset, AssetKind, type AssetService, AssetState } from "@unkey/api/asset";
import { InvalidAttestation, type VerificationKey, verifyProvenance } from "@unkey/attest";
import { ServiceError, type TenantId } from "@unkey/base";
import type { ProvenanceRequest, RootfsTrust, StagedCheckRequest } from "../ports.ts";
import { partsProblem } from "./rootfs-parts.ts";

/** Provenance names an image's layers by digest: some hundred bytes for each. */
const maxProvenanceBytes = 1024 * 1024;
/** One root filesystem has one; more are the newest tries of a build that was repeated. */
const maxCandidates = 8;

/** What is kept beside a VM's files: enough to judge its root filesystem again without asking anybody. */
interface Kept {
  readonly rootfsAssetId: string;
  readonly rootfsDigest: string;
  /** The envelope's JSON. */
  readonly envelope: string;
}

export interface ProvenanceCheckDeps {
  readonly client: Pick<Client<typeof AssetService>, "getAsset" | "listAssets" | "downloadAsset">;
  readonly keys: readonly VerificationKey[];
  /** URI of the builder whose word counts. */
  readonly builderId: string;
}

/**
 * Judges root filesystems by the provenance that is attached to them: signed by a trusted key, made by this platform's builder,
 * about the asset's very digest. Everything else is a refusal. What was found is kept in a file of the VM, and a later boot
 * verifies that again, with the keys that are trusted then, without assetmanagerd.
 */
export class ProvenanceCheck implements RootfsTrust {
  readonly #deps: ProvenanceCheckDeps;

  constructor(deps: ProvenanceCheckDeps) {
    this.#deps = deps;
  }

  async check(request: ProvenanceRequest, signal: AbortSignal): Promise<void> {
    const kept = await readKept(request.keepPath);
    if (kept?.rootfsAssetId === request.rootfsAssetId && this.#problem(kept) === undefined) return;
    const found = await this.#fetch(request, signal);
    await keep(request.keepPath, found);
  }

  async checkStaged({ keepPath, rootfsPath, partPaths, staged }: StagedCheckRequest): Promise<void> {
    const attested = (await readKept(keepPath))?.rootfsDigest;
    // What an earlier release staged was recorded without digests, and had no parts.
    const { digest, partDigests } = staged ?? { digest: attested, partDigests: [] };
    const problem =
      attested === undefined || digest !== attested
        ? `its image is ${digest}, and the provenance is about ${attested}`
        : await partsProblem(rootfsPath, { partPaths, partDigests });
    if (problem !== undefined) {
      throw new ServiceError("PROVENANCE_INVALID", `what was staged is not the attested root filesystem: ${problem}`);
    }
  }

  async #fetch({ tenantId, rootfsAssetId }: ProvenanceRequest, signal: AbortSignal): Promise<Kept> {
    const { client } = this.#deps;
    const rootfs = await client.getAsset({ tenantId, assetId: rootfsAssetId }, { signal });
    if (rootfs.kind !== AssetKind.ROOTFS) {
      throw new ServiceError("PROVENANCE_INVALID", `the asset ${rootfsAssetId} is not a root filesystem`);
    }
    const { assets } = await client.listAssets(
      { tenantId, kind: AssetKind.PROVENANCE, attachedTo: rootfsAssetId, pageSize: maxCandidates },
      { signal },
    );
    const candidates = assets.filter(
      (asset) => asset.attachedTo === rootfsAssetId && asset.state === AssetState.AVAILABLE,
    );
    let problem: string | undefined;
    for (const candidate of candidates.slice(0, maxCandidates)) {
      if (candidate.sizeBytes > maxProvenanceBytes) {
        problem ??= `the provenance has ${candidate.sizeBytes} bytes; at most ${maxProvenanceBytes} are read`;
        continue;
      }
      const envelope = (await this.#download(tenantId, candidate, signal)).toString("utf8");
      const found: Kept = { rootfsAssetId, rootfsDigest: rootfs.digest, envelope };
      const wrong = this.#problem(found);
      if (wrong === undefined) return found;
      problem ??= wrong; // of the newest
    }
    const about = `the root filesystem ${rootfsAssetId}`;
    if (problem === undefined) throw new ServiceError("PROVENANCE_MISSING", `${about} has no provenance attached`);
    throw new ServiceError("PROVENANCE_INVALID", `the provenance of ${about} does not hold: ${problem}`);
  }

  /** Undefined when the provenance holds. */
  #problem({ envelope, rootfsDigest }: Kept): string | undefined {
    const { keys, builderId } = this.#deps;
    try {
      verifyProvenance(Buffer.from(envelope), { keys, builderId, rootfsDigest });
      return undefined;
    } catch (error) {
      if (error instanceof InvalidAttestation) return error.message;
      throw error;
    }
  }

  async #download(tenantId: TenantId, { assetId }: Asset, signal: AbortSignal): Promise<Buffer> {
    const chunks: Uint8Array[] = [];
    let bytes = 0;
    for await (const { chunk } of this.#deps.client.downloadAsset({ tenantId, assetId }, { signal })) {
      bytes += chunk.length;
      if (bytes > maxProvenanceBytes) throw new ServiceError("PROVENANCE_INVALID", "the provenance is too long");
      chunks.push(chunk);
    }
    return Buffer.concat(chunks);
  }
}

/** Undefined for a file that is missing or not whole: it is fetched again then. */
async function readKept(path: string): Promise<Kept | undefined> {
  try {
    const { rootfsAssetId, rootfsDigest, envelope } = JSON.parse(await readFile(path, "utf8")) as Partial<Kept>;
    if (rootfsAssetId === undefined || rootfsDigest === undefined || envelope === undefined) return undefined;
    return { rootfsAssetId, rootfsDigest, envelope };
  } catch (error) {
    if (error instanceof SyntaxError || (error as NodeJS.ErrnoException).code === "ENOENT") return undefined;
    throw error;
  }
}

async function keep(path: string, kept: Kept): Promise<void> {
  const unfinished = `${path}.${randomBytes(4).toString("hex")}.new`;
  try {
    const file = await open(unfinished, "wx", 0o400);
    try {
      await file.writeFile(JSON.stringify(kept));
      await file.sync();
    } finally {
      await file.close();
    }
    await rename(unfinished, path);
  } catch (error) {
    await rm(unfinished, { force: true });
    throw error;
  }
}
