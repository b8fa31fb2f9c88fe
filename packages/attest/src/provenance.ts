import { InvalidAttestation } from "./invalid-attestation.ts";
import { asArray, asObject, asString, type JsonObject } from "./json.ts";
import type { SigningKey, VerificationKey } from "./keys.ts";
import { isAbout, openStatement, signStatement } from "./statement.ts";

/* SLSA provenance v1 (https://slsa.dev/spec/v1.0/provenance) of a root filesystem; docs/provenance.md explains our build type. */

const predicateType = "https://slsa.dev/provenance/v1";
/** Names what docs/provenance.md describes; another meaning of a field gets another number. */
export const rootfsBuildType = "tag:unkey.com,2026:deploy/image-to-rootfs/v1";

/** What the tenant asked to have converted. */
export type ProvenanceImage =
  | { readonly reference: string }
  | { readonly upload: string }
  | { readonly pushed: string };

/** Something named by its digest, `<algorithm>:<hex>`. */
export interface Artifact {
  readonly digest: string;
  readonly sizeBytes: number;
}

/** A signature of the image that the policy asked for and that was found to hold. */
export interface ImageSignature {
  /** What is signed: the manifest, or the index that lists it. */
  readonly digest: string;
  /** The key that signed, as `VerificationKey.id` names it. */
  readonly keyId: string;
  /** Of an in-toto attestation; empty for a signature of the digest alone. */
  readonly predicateType: string;
}

/** How one root filesystem was made. It has no place for credentials, environment, arguments of the app or of a build. */
export interface RootfsProvenance {
  readonly image: ProvenanceImage;
  /** os/architecture[/variant]. */
  readonly platform: string;
  readonly format: "erofs" | "ext4";
  /** sha256:<hex>. */
  readonly policyDigest: string;
  readonly manifestDigest: string;
  readonly config: Artifact;
  /** Lowest first. */
  readonly layers: readonly Artifact[];
  readonly signatures: readonly ImageSignature[];
  readonly rootfs: Artifact;
  /** The package list. */
  readonly sbom: Artifact;
  /** URI of who made it. */
  readonly builderId: string;
  /** Program → version. */
  readonly builderVersion: Readonly<Record<string, string>>;
  /** The build's id. */
  readonly invocationId: string;
  readonly startedAtMs: number;
  readonly finishedAtMs: number;
}

/** What a verifier has read of a provenance whose signature it trusts. */
export interface VerifiedProvenance {
  readonly key: VerificationKey;
  readonly image: ProvenanceImage;
  readonly platform: string;
  readonly format: string;
  readonly policyDigest: string;
  readonly manifestDigest: string;
  readonly sbomDigest: string;
  readonly layerCount: number;
  readonly signatures: readonly ImageSignature[];
  readonly invocationId: string;
  readonly builderVersion: Readonly<Record<string, string>>;
}

const maxDependencies = 4096;
const maxText = 4096;

/** The signed statement, as JSON. */
export function signProvenance(made: RootfsProvenance, key: SigningKey): Buffer {
  const { image, platform, format, policyDigest } = made;
  const predicate = {
    buildDefinition: {
      buildType: rootfsBuildType,
      externalParameters: { image, platform, format, policy: { digest: digestSet(policyDigest) } },
      internalParameters: { imageSignatures: made.signatures },
      resolvedDependencies: [
        { name: "manifest", digest: digestSet(made.manifestDigest) },
        resource("config", made.config),
        ...made.layers.map((layer) => resource("layer", layer)),
      ],
    },
    runDetails: {
      builder: { id: made.builderId, version: made.builderVersion },
      metadata: {
        invocationId: made.invocationId,
        startedOn: timestamp(made.startedAtMs),
        finishedOn: timestamp(made.finishedAtMs),
      },
      byproducts: [{ ...resource("sbom", made.sbom), mediaType: "application/spdx+json" }],
    },
  };
  const subjects = [{ name: "rootfs", digest: digestSet(made.rootfs.digest) }];
  return signStatement({ subjects, predicateType, predicate }, key);
}

/**
 * Reads a provenance: signed by one of `keys`, made by `builderId`, about the root filesystem with this digest. Throws
 * InvalidAttestation that says which of it does not hold.
 */
export function verifyProvenance(
  envelope: Uint8Array,
  expected: { readonly keys: readonly VerificationKey[]; readonly builderId: string; readonly rootfsDigest: string },
): VerifiedProvenance {
  const { statement, key } = openStatement(envelope, expected.keys);
  if (statement.predicateType !== predicateType) {
    throw new InvalidAttestation(
      `the statement is a ${JSON.stringify(statement.predicateType)}, not SLSA provenance v1`,
    );
  }
  if (!isAbout(statement, expected.rootfsDigest)) {
    throw new InvalidAttestation(`the provenance is about something else than ${expected.rootfsDigest}`);
  }
  const definition = member(statement.predicate, "buildDefinition");
  if (definition["buildType"] !== rootfsBuildType) {
    throw new InvalidAttestation("the provenance is of a build type that this platform does not know");
  }
  const run = member(statement.predicate, "runDetails");
  const builder = member(run, "builder");
  if (builder["id"] !== expected.builderId) {
    throw new InvalidAttestation(
      `the provenance names the builder ${JSON.stringify(builder["id"])?.slice(0, 200)}, not ${expected.builderId}`,
    );
  }
  const parameters = member(definition, "externalParameters");
  const dependencies = resources(definition["resolvedDependencies"], "resolvedDependencies");
  const [manifest] = dependencies.filter(({ name }) => name === "manifest");
  const [sbom] = resources(run["byproducts"], "byproducts").filter(({ name }) => name === "sbom");
  if (manifest === undefined) throw new InvalidAttestation("the provenance names no manifest");
  if (sbom === undefined) throw new InvalidAttestation("the provenance names no package list");
  return {
    key,
    image: imageOf(member(parameters, "image")),
    platform: text(parameters, "platform"),
    format: text(parameters, "format"),
    policyDigest: digestOf(member(member(parameters, "policy"), "digest")),
    manifestDigest: manifest.digest,
    sbomDigest: sbom.digest,
    layerCount: dependencies.filter(({ name }) => name === "layer").length,
    signatures: signaturesOf(member(definition, "internalParameters")),
    invocationId: text(member(run, "metadata"), "invocationId"),
    builderVersion: Object.fromEntries(
      Object.entries(member(builder, "version")).map(([name, value]) => [name, asString(value, maxText, "a version")]),
    ),
  };
}

function resource(name: string, { digest, sizeBytes }: Artifact) {
  return { name, digest: digestSet(digest), annotations: { sizeBytes } };
}

function resources(value: unknown, what: string): { name: string; digest: string }[] {
  return asArray(value, maxDependencies, `the provenance's ${what}`).map((item) => {
    const each = asObject(item, `one of the provenance's ${what}`);
    return { name: text(each, "name"), digest: digestOf(member(each, "digest")) };
  });
}

function signaturesOf(parameters: JsonObject): ImageSignature[] {
  return asArray(parameters["imageSignatures"], maxDependencies, "the provenance's imageSignatures").map((item) => {
    const each = asObject(item, "one of the provenance's imageSignatures");
    return { digest: text(each, "digest"), keyId: text(each, "keyId"), predicateType: text(each, "predicateType") };
  });
}

function imageOf(image: JsonObject): ProvenanceImage {
  if ("reference" in image) return { reference: text(image, "reference") };
  if ("upload" in image) return { upload: text(image, "upload") };
  return { pushed: text(image, "pushed") };
}

function digestSet(digest: string): Readonly<Record<string, string>> {
  const match = /^([a-z0-9]+):([0-9a-f]+)$/.exec(digest);
  if (match?.[1] === undefined || match[2] === undefined) throw new Error(`not a digest: ${digest}`);
  return { [match[1]]: match[2] };
}

/** The only one that we write. */
function digestOf(set: JsonObject): string {
  const [first] = Object.entries(set);
  if (first === undefined) throw new InvalidAttestation("a digest in the provenance is empty");
  return `${first[0]}:${asString(first[1], 256, "a digest in the provenance")}`;
}

function member(object: JsonObject, name: string): JsonObject {
  return asObject(object[name], `the provenance's ${name}`);
}

function text(object: JsonObject, name: string): string {
  return asString(object[name], maxText, `the provenance's ${name}`);
}

/** As the specification writes instants: UTC, whole seconds. */
function timestamp(atMs: number): string {
  return new Date(atMs).toISOString().replace(/\.\d{3}Z$/, "Z");
}
