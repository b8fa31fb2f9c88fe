import {
  decodeBase64,
  type ImageSignature,
  InvalidAttestation,
  isAbout,
  openStatement,
  parseSimpleSigning,
  readVerificationKeys,
  signatureAnnotation,
  simpleSigningMediaType,
  type VerificationKey,
} from "@unkey/attest";
import { isServiceError, ServiceError } from "@unkey/base";
import { type ImageSource, parseImageReference, type ResolvedManifest, resolveManifest } from "@unkey/oci";
import type { BuildSource } from "../domain/build.ts";
import { type BuildPolicy, policyNameOf, type SignatureRule, signatureRulesFor } from "../domain/policy.ts";

export interface SignatureCheck {
  readonly image: ImageSource;
  readonly source: BuildSource;
  /** Of the manifest that is built. */
  readonly manifestDigest: string;
  readonly policy: BuildPolicy;
}

const envelopeMediaType = "application/vnd.dsse.envelope.v1+json";
/** Of one image: who signs often leaves many, and each costs a request. */
const maxSignatures = 32;
const maxPayloadBytes = 64 * 1024;
/** Attestations carry package lists and scan reports. */
const maxEnvelopeBytes = 8 * 1024 * 1024;
/** Signatures are no image of a platform: whatever is asked for, the manifest is taken. */
const anyPlatform = { os: "linux", architecture: "amd64", variant: "" };

/**
 * The signatures that the policy asks of this image, found beside it where cosign puts them and verified offline by key; empty
 * when it asks for none. What is signed may be the manifest or the index that the image's name stands for, as long as the index
 * lists the manifest. Throws IMAGE_SIGNATURE_MISSING when there is nothing of the kind, IMAGE_SIGNATURE_INVALID when nothing of
 * it holds, and what the registry throws.
 */
export async function checkSignatures(check: SignatureCheck, signal: AbortSignal): Promise<ImageSignature[]> {
  const rules = signatureRulesFor(check.policy, check.source);
  if (rules.length === 0) return [];
  const found = new FoundSignatures(check, signal);
  const holding: ImageSignature[] = [];
  for (const rule of rules) {
    if (rule.signature) holding.push(await requireOne(found, rule, ""));
    for (const predicateType of rule.attestations) holding.push(await requireOne(found, rule, predicateType));
  }
  return holding;
}

/** One signature by one of the rule's keys. `predicateType` is empty for a signature of the digest alone. */
async function requireOne(found: FoundSignatures, rule: SignatureRule, predicateType: string): Promise<ImageSignature> {
  const keys = rule.keys.flatMap((pem) => [...readVerificationKeys(pem)]);
  const what = predicateType === "" ? "signature" : `attestation of the type ${predicateType}`;
  let problem: string | undefined;
  for (const digest of await found.digests()) {
    const signed = predicateType === "" ? await found.signatures(digest) : await found.attestations(digest);
    for (const one of signed) {
      try {
        const key = one.verify(keys, predicateType);
        return { digest, keyId: key.id, predicateType };
      } catch (error) {
        if (!(error instanceof InvalidAttestation)) throw error;
        problem ??= error.message;
      }
    }
  }
  const { name } = found;
  if (problem === undefined) {
    throw new ServiceError("IMAGE_SIGNATURE_MISSING", `the build policy asks for a ${what} of ${name}; there is none`);
  }
  throw new ServiceError("IMAGE_SIGNATURE_INVALID", `no ${what} of ${name} holds: ${problem}`);
}

/** Something signed about an image, fetched and not yet believed. */
interface Signed {
  /** The key that signed it. Throws InvalidAttestation. */
  verify(keys: readonly VerificationKey[], predicateType: string): VerificationKey;
}

/** What lies beside one image; each thing is fetched once. */
class FoundSignatures {
  readonly name: string;
  readonly #check: SignatureCheck;
  readonly #signal: AbortSignal;
  readonly #manifests = new Map<string, Promise<readonly Signed[]>>();
  #digests: Promise<readonly string[]> | undefined;

  constructor(check: SignatureCheck, signal: AbortSignal) {
    this.name = check.image.name;
    this.#check = check;
    this.#signal = signal;
  }

  /** What may be signed in the image's stead: its manifest first. */
  digests(): Promise<readonly string[]> {
    return (this.#digests ??= this.#findDigests());
  }

  signatures(digest: string): Promise<readonly Signed[]> {
    return this.#at(`${tagOf(digest)}.sig`, simpleSigningMediaType, maxPayloadBytes, (payload, annotations) => ({
      verify: (keys) => this.#verifySignature(payload, annotations[signatureAnnotation], digest, keys),
    }));
  }

  attestations(digest: string): Promise<readonly Signed[]> {
    return this.#at(`${tagOf(digest)}.att`, envelopeMediaType, maxEnvelopeBytes, (envelope) => ({
      verify: (keys, predicateType) => verifyAttestation(envelope, predicateType, digest, keys),
    }));
  }

  async #findDigests(): Promise<readonly string[]> {
    const { image, manifestDigest } = this.#check;
    const root = await image.root(this.#signal);
    // The tag may have moved since: only what lists the very manifest speaks for it.
    const lists = root.digest !== manifestDigest && listsManifest(root.bytes, manifestDigest);
    return lists ? [manifestDigest, root.digest] : [manifestDigest];
  }

  #at(
    tag: string,
    mediaType: string,
    maxBytes: number,
    read: (bytes: Buffer, annotations: Readonly<Record<string, string>>) => Signed,
  ): Promise<readonly Signed[]> {
    let fetched = this.#manifests.get(tag);
    if (fetched === undefined) this.#manifests.set(tag, (fetched = this.#fetch(tag, mediaType, maxBytes, read)));
    return fetched;
  }

  async #fetch(
    tag: string,
    mediaType: string,
    maxBytes: number,
    read: (bytes: Buffer, annotations: Readonly<Record<string, string>>) => Signed,
  ): Promise<readonly Signed[]> {
    const source = this.#check.image.related(tag);
    if (source === undefined) return []; // an archive has nothing beside it
    const manifest = await this.#manifest(source);
    const layers = manifest?.layers.filter((layer) => layer.mediaType === mediaType) ?? [];
    if (layers.length > maxSignatures) {
      throw new ServiceError(
        "IMAGE_SIGNATURE_INVALID",
        `${source.name} holds ${layers.length} signatures; at most ${maxSignatures} are looked at`,
      );
    }
    const signed: Signed[] = [];
    for (const layer of layers) {
      if (layer.sizeBytes > maxBytes) {
        const problem = `it has ${layer.sizeBytes} bytes; at most ${maxBytes} are read`;
        signed.push({ verify: () => fail(problem) });
        continue;
      }
      const chunks: Uint8Array[] = [];
      for await (const chunk of source.openLayer(layer, { signal: this.#signal })) chunks.push(chunk);
      signed.push(read(Buffer.concat(chunks), layer.annotations));
    }
    return signed;
  }

  /** Undefined when nothing was pushed under the tag. */
  async #manifest(source: ImageSource): Promise<ResolvedManifest["manifest"] | undefined> {
    try {
      return (await resolveManifest(source, anyPlatform, this.#signal)).manifest;
    } catch (error) {
      if (isServiceError(error) && error.reason === "IMAGE_NOT_FOUND") return undefined;
      throw error;
    }
  }

  #verifySignature(
    payload: Buffer,
    signature: string | undefined,
    digest: string,
    keys: readonly VerificationKey[],
  ): VerificationKey {
    const bytes = signature === undefined ? undefined : decodeBase64(signature);
    if (bytes === undefined) return fail("it carries no signature in base64");
    const key = keys.find((each) => each.verify(payload, bytes));
    if (key === undefined) return fail("it is not by a key that the policy lists");
    const { manifestDigest, dockerReference } = parseSimpleSigning(payload);
    if (manifestDigest !== digest) return fail(`it is of ${JSON.stringify(manifestDigest)}, another image`);
    if (dockerReference !== "" && !this.#names(dockerReference)) {
      return fail(`it is for the repository ${JSON.stringify(dockerReference)}`);
    }
    return key;
  }

  /** Whether the signer meant this image's repository. The platform's own registry goes by many host names. */
  #names(dockerReference: string): boolean {
    const { source } = this.#check;
    try {
      const { registry, repository } = parseImageReference(dockerReference);
      return source.kind === "pushed"
        ? repository === source.repository || repository === `library/${source.repository}`
        : `${registry}/${repository}` === policyNameOf(source);
    } catch (error) {
      if (isServiceError(error)) return false;
      throw error;
    }
  }
}

function verifyAttestation(
  envelope: Buffer,
  predicateType: string,
  digest: string,
  keys: readonly VerificationKey[],
): VerificationKey {
  const { statement, key } = openStatement(envelope, keys);
  if (statement.predicateType !== predicateType) {
    return fail(`it is of the type ${JSON.stringify(statement.predicateType)}`);
  }
  if (!isAbout(statement, digest)) return fail("it is about another image");
  return key;
}

function listsManifest(index: Uint8Array, digest: string): boolean {
  let json: { manifests?: unknown } | null;
  try {
    json = JSON.parse(Buffer.from(index).toString("utf8")) as typeof json;
  } catch {
    return false; // whatever the tag stands for now, it is no index
  }
  const members: unknown = json?.manifests;
  return Array.isArray(members) && members.some((member: { digest?: unknown } | null) => member?.digest === digest);
}

function tagOf(digest: string): string {
  return digest.replace(":", "-");
}

function fail(problem: string): never {
  throw new InvalidAttestation(problem);
}
