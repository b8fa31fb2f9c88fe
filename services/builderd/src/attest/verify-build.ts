import { createHash } from "node:crypto";
import {
  InvalidAttestation,
  openStatement,
  readVerificationKeys,
  type VerificationKey,
  type VerifiedProvenance,
  verifyProvenance,
} from "@unkey/attest";
import { type AssetId, isServiceError, ServiceError } from "@unkey/base";
import { deviceTableOf } from "@unkey/erofs";
import type { Build } from "../domain/build.ts";
import { type BuildPolicy, type SignatureRule, signatureRulesFor } from "../domain/policy.ts";
import type { RulesSource } from "../ports.ts";
import { maxProvenanceBytes } from "./signing-attester.ts";
import type { StatementAsset, StatementAssets } from "./statement-assets.ts";

/** One link of the chain from image to root filesystem. */
export interface Link {
  readonly name: string;
  readonly holds: boolean;
  /** Evidence, or what is wrong. */
  readonly detail: string;
}

export interface BuildVerifierDeps {
  readonly assets: StatementAssets;
  readonly keys: readonly VerificationKey[];
  readonly builderId: string;
  readonly rules: RulesSource;
}

/** Above what the bounds of a package list allow. */
const maxSbomBytes = 96 * 1024 * 1024;

/** Checks what a build left behind: everything is read again, nothing is taken from the build's row but what it claims. */
export class BuildVerifier {
  readonly #deps: BuildVerifierDeps;

  constructor(deps: BuildVerifierDeps) {
    this.#deps = deps;
  }

  /** The chain, in order; a link that cannot be checked does not hold. Throws BUILD_NOT_COMPLETED. */
  async verify(build: Build, signal: AbortSignal): Promise<readonly Link[]> {
    const { tenantId, buildId, rootfsAssetId } = build;
    if (build.state !== "completed" || rootfsAssetId === "") {
      throw new ServiceError("BUILD_NOT_COMPLETED", `${buildId} is ${build.state}: there is nothing to verify`);
    }
    const { assets, rules } = this.#deps;
    const links: Link[] = [];
    const check = async <T>(
      name: string,
      work: () => Promise<[evidence: string, value: T]>,
    ): Promise<T | undefined> => {
      try {
        const [detail, value] = await work();
        links.push({ name, holds: true, detail });
        return value;
      } catch (error) {
        signal.throwIfAborted();
        if (!(error instanceof InvalidAttestation) && !isFinding(error)) throw error;
        links.push({ name, holds: false, detail: error.message });
        return undefined;
      }
    };

    const rootfs = await check("root filesystem", async () => {
      const asset = await assets.rootfs(tenantId, rootfsAssetId, signal);
      if (asset === undefined) return broken(`${rootfsAssetId} is not there any more`);
      return [`${rootfsAssetId} is ${asset.digest}`, asset];
    });
    const head = await check("root filesystem bytes", async () => {
      const { digest } = needed(rootfs, "there is no root filesystem");
      const read = await assets.readAgain(tenantId, rootfsAssetId, signal);
      if (read.digest !== digest) return broken(`the stored bytes have the digest ${read.digest}, not ${digest}`);
      return [`read again: ${read.digest}`, read.head];
    });
    await check("root filesystem parts", async () => {
      const { parts } = needed(rootfs, "there is no root filesystem");
      const named = partsNamedBy(build, needed(head, "the root filesystem's bytes cannot be trusted"));
      const stored = parts.map(({ digest }) => digest);
      if (named.join() !== stored.join()) {
        return broken(`it names ${named.join(", ") || "no parts"}, and is stored with ${stored.join(", ") || "none"}`);
      }
      for (const { assetId, digest } of parts) {
        const read = await assets.readAgain(tenantId, assetId, signal);
        if (read.digest !== digest)
          return broken(`the bytes of ${assetId} have the digest ${read.digest}, not ${digest}`);
      }
      return [named.length === 0 ? "it has none" : `it names them, read again: ${named.join(", ")}`, undefined];
    });
    const envelope = await check("provenance signature", async () => {
      const bytes = await this.#readProvenance(build, rootfsAssetId, signal);
      const { key } = openStatement(bytes, this.#deps.keys);
      return [`signed with ${key.algorithm} by the trusted key ${key.id}`, bytes];
    });
    const provenance = await check("provenance subject", async () => {
      const { digest } = needed(rootfs, "there is no root filesystem");
      const bytes = needed(envelope, "there is no provenance that can be trusted");
      const verified = verifyProvenance(bytes, { ...this.#deps, rootfsDigest: digest });
      return [`${verified.invocationId} of ${this.#deps.builderId} made ${digest}`, verified];
    });
    const read = (): VerifiedProvenance => needed(provenance, "there is no provenance that can be trusted");
    await check("image", async () => {
      const { manifestDigest, layerCount } = read();
      if (manifestDigest !== build.imageDigest) {
        return broken(`the build says ${build.imageDigest}, the provenance ${manifestDigest}`);
      }
      return [`made from ${manifestDigest}, ${layerCount} layers`, undefined];
    });
    const { policy, policyDigest } = rules.rulesOf(tenantId);
    await check("policy", async () => {
      const stated = read().policyDigest;
      if (stated !== build.policyDigest)
        return broken(`the build says ${build.policyDigest}, the provenance ${stated}`);
      return [
        stated === policyDigest ? `${stated}, still in force` : `${stated}; today's is ${policyDigest}`,
        undefined,
      ];
    });
    await check("image signatures", async () => [signaturesHold(read(), policy, build), undefined]);
    await check("package list", async () => [await this.#checkSbom(build, rootfsAssetId, read(), signal), undefined]);
    return links;
  }

  async #readProvenance(build: Build, rootfsAssetId: AssetId, signal: AbortSignal): Promise<Buffer> {
    const { assets } = this.#deps;
    const { tenantId, provenanceAssetId } = build;
    const asset = named(await assets.attached(tenantId, rootfsAssetId, "provenance", signal), provenanceAssetId);
    if (asset === undefined) return broken(`no provenance ${provenanceAssetId} is attached to ${rootfsAssetId}`);
    return assets.read(tenantId, asset.assetId, maxProvenanceBytes, signal);
  }

  async #checkSbom(build: Build, rootfsAssetId: AssetId, stated: VerifiedProvenance, signal: AbortSignal) {
    const { assets } = this.#deps;
    const { tenantId, sbomAssetId } = build;
    const asset = named(await assets.attached(tenantId, rootfsAssetId, "sbom", signal), sbomAssetId);
    if (asset === undefined) return broken(`no package list ${sbomAssetId} is attached to ${rootfsAssetId}`);
    const bytes = await assets.read(tenantId, asset.assetId, maxSbomBytes, signal);
    const digest = `sha256:${createHash("sha256").update(bytes).digest("hex")}`;
    if (digest !== stated.sbomDigest) return broken(`the provenance names ${stated.sbomDigest}, stored is ${digest}`);
    const document = JSON.parse(bytes.toString("utf8")) as { spdxVersion?: string; packages?: readonly unknown[] };
    return `${document.spdxVersion ?? "?"}, ${(document.packages?.length ?? 1) - 1} packages, ${digest}`;
  }
}

/** Digests of the parts that a root filesystem's own bytes name. */
function partsNamedBy({ request }: Build, head: Buffer): string[] {
  if (request.format !== "erofs") return [];
  try {
    return deviceTableOf(head).map(({ digest }) => `sha256:${digest}`);
  } catch (error) {
    return broken(error instanceof Error ? error.message : String(error));
  }
}

/** Today's rules against the signatures that the provenance records. Throws InvalidAttestation. */
function signaturesHold({ signatures }: VerifiedProvenance, policy: BuildPolicy, { request }: Build): string {
  const rules = signatureRulesFor(policy, request.source);
  for (const rule of rules) {
    const trusted = new Set(rule.keys.flatMap((pem) => [...readVerificationKeys(pem)]).map(({ id }) => id));
    for (const predicateType of wantedBy(rule)) {
      const holds = signatures.some((one) => one.predicateType === predicateType && trusted.has(one.keyId));
      const what = predicateType === "" ? "a signature" : `an attestation of the type ${predicateType}`;
      if (!holds) return broken(`today's policy asks for ${what} that the provenance does not record`);
    }
  }
  const recorded = signatures.map(({ digest, keyId }) => `${digest} by ${keyId}`);
  return recorded.length > 0 ? recorded.join("; ") : "the policy asks for none";
}

function wantedBy(rule: SignatureRule): readonly string[] {
  return rule.signature ? ["", ...rule.attestations] : rule.attestations;
}

function named(assets: readonly StatementAsset[], assetId: AssetId | ""): StatementAsset | undefined {
  return assets.find((asset) => asset.assetId === assetId);
}

function needed<T>(value: T | undefined, problem: string): T {
  return value ?? broken(`not checked: ${problem}`);
}

function broken(problem: string): never {
  throw new InvalidAttestation(problem);
}

/** What assetmanagerd says of an asset that is gone or damaged; anything else is a failure of the check itself. */
function isFinding(error: unknown): error is ServiceError {
  return isServiceError(error) && (error.code === "data_loss" || error.code === "not_found");
}
