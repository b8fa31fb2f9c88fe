import { createHash } from "node:crypto";
import {
  type ImageSignature,
  InvalidAttestation,
  type ProvenanceImage,
  type SigningKey,
  signProvenance,
  spdxDocument,
  type VerificationKey,
  type VerifiedProvenance,
  verifyProvenance,
} from "@unkey/attest";
import type { AssetId, TenantId } from "@unkey/base";
import { formatImageReference, parseImageReference } from "@unkey/oci";
import type { BuildSource } from "../domain/build.ts";
import type { Attestation, AttestedResult, Attester, AttestRequest } from "../ports.ts";
import type { StatementAsset, StatementAssets } from "./statement-assets.ts";

/** Far above what an image of the most layers has. */
export const maxProvenanceBytes = 1024 * 1024;

export interface SigningAttesterDeps {
  readonly assets: StatementAssets;
  readonly key: SigningKey;
  /** Whose earlier statements still hold; the signing key's own among them. */
  readonly keys: readonly VerificationKey[];
  /** URI of this platform's builder. */
  readonly builderId: string;
  readonly version: string;
}

/**
 * Signs what was made and attaches it to the root filesystem: first the package list, then the provenance that names it.
 * Both are looked for before they are made, so that an attempt that died at any point is continued.
 */
export class SigningAttester implements Attester {
  readonly #deps: SigningAttesterDeps;

  constructor(deps: SigningAttesterDeps) {
    this.#deps = deps;
  }

  async attest(request: AttestRequest, signal: AbortSignal): Promise<Attestation> {
    const { assets, key, builderId, version } = this.#deps;
    const { build, image, rootfs } = request;
    const { tenantId, buildId } = build;
    const found = await this.#find(request, signal);
    if (found !== undefined) return found;

    const document = spdxDocument(
      {
        buildId,
        createdAtMs: build.createdAtMs,
        imageName: build.imageName,
        manifestDigest: image.manifestDigest,
        rootfsDigest: rootfs.digest,
        tool: `unkey-builderd-${version}`,
      },
      request.packages,
    );
    const sbom = await this.#ensureSbom(tenantId, rootfs.assetId, document, signal);
    const envelope = signProvenance(
      {
        image: imageOf(build.request.source),
        platform: build.platform,
        format: request.format,
        policyDigest: request.policyDigest,
        manifestDigest: image.manifestDigest,
        config: image.config,
        layers: image.layers,
        signatures: request.signatures,
        rootfs,
        sbom,
        builderId,
        builderVersion: { "unkey-builderd": version, node: process.versions.node },
        invocationId: buildId,
        startedAtMs: request.startedAtMs,
        finishedAtMs: request.finishedAtMs,
      },
      key,
    );
    const provenance = await assets.store(
      { tenantId, attachedTo: rootfs.assetId, kind: "provenance", name: "provenance", bytes: envelope },
      signal,
    );
    return { provenanceAssetId: provenance.assetId, sbomAssetId: sbom.assetId };
  }

  async holds(tenantId: TenantId, result: AttestedResult, signal: AbortSignal): Promise<boolean> {
    const { assets } = this.#deps;
    const { rootfsAssetId, provenanceAssetId, sbomAssetId } = result;
    const [rootfs, provenances, sboms] = await Promise.all([
      assets.rootfs(tenantId, rootfsAssetId, signal),
      assets.attached(tenantId, rootfsAssetId, "provenance", signal),
      assets.attached(tenantId, rootfsAssetId, "sbom", signal),
    ]);
    const provenance = provenances.find(({ assetId }) => assetId === provenanceAssetId);
    const sbom = sboms.find(({ assetId }) => assetId === sbomAssetId);
    if (rootfs === undefined || provenance === undefined || sbom === undefined) return false;
    const verified = await this.#read(tenantId, provenance, rootfs.digest, signal);
    return verified?.sbomDigest === sbom.digest && records(verified, result.signatures);
  }

  /** What an earlier attempt, or an earlier build that is forgotten, stored about the same root filesystem. */
  async #find(request: AttestRequest, signal: AbortSignal): Promise<Attestation | undefined> {
    const { build, image, policyDigest, rootfs } = request;
    const { assets } = this.#deps;
    const candidates = await assets.attached(build.tenantId, rootfs.assetId, "provenance", signal);
    if (candidates.length === 0) return undefined;
    const sboms = await assets.attached(build.tenantId, rootfs.assetId, "sbom", signal);
    for (const candidate of candidates) {
      const verified = await this.#read(build.tenantId, candidate, rootfs.digest, signal);
      if (verified?.manifestDigest !== image.manifestDigest || verified.policyDigest !== policyDigest) continue;
      if (!records(verified, request.signatures)) continue;
      const sbom = sboms.find(({ digest }) => digest === verified.sbomDigest);
      if (sbom !== undefined) return { provenanceAssetId: candidate.assetId, sbomAssetId: sbom.assetId };
    }
    return undefined;
  }

  async #ensureSbom(tenantId: TenantId, attachedTo: AssetId, document: Buffer, signal: AbortSignal) {
    const { assets } = this.#deps;
    const digest = `sha256:${createHash("sha256").update(document).digest("hex")}`;
    const stored = await assets.attached(tenantId, attachedTo, "sbom", signal);
    return (
      stored.find((sbom) => sbom.digest === digest) ??
      (await assets.store({ tenantId, attachedTo, kind: "sbom", name: "sbom.spdx.json", bytes: document }, signal))
    );
  }

  /** Undefined for one that does not hold. */
  async #read(
    tenantId: TenantId,
    provenance: StatementAsset,
    rootfsDigest: string,
    signal: AbortSignal,
  ): Promise<VerifiedProvenance | undefined> {
    const { assets, keys, builderId } = this.#deps;
    if (provenance.sizeBytes > maxProvenanceBytes) return undefined;
    const envelope = await assets.read(tenantId, provenance.assetId, maxProvenanceBytes, signal);
    try {
      return verifyProvenance(envelope, { keys, builderId, rootfsDigest });
    } catch (error) {
      if (error instanceof InvalidAttestation) return undefined;
      throw error;
    }
  }
}

function records({ signatures }: VerifiedProvenance, found: readonly ImageSignature[]): boolean {
  return found.every(({ digest, keyId, predicateType }) =>
    signatures.some((one) => one.digest === digest && one.keyId === keyId && one.predicateType === predicateType),
  );
}

/** Without what a reference could carry beside its name: it is written anew from its parts. */
function imageOf(source: BuildSource): ProvenanceImage {
  switch (source.kind) {
    case "reference":
      return { reference: formatImageReference(parseImageReference(source.reference)) };
    case "upload":
      return { upload: source.uploadId };
    case "pushed":
      return { pushed: `${source.repository}@${source.digest}` };
  }
}
