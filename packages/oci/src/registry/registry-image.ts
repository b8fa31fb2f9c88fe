import { isServiceError, ServiceError } from "@unkey/base";
import type { Dispatcher } from "undici";
import { digestAlgorithm, digestOf, isDigest } from "../digest.ts";
import { acceptedManifestTypes, type Descriptor, maxManifestBytes } from "../documents.ts";
import type { FetchedDocument, FetchOptions, ImageSource } from "../image-source.ts";
import { checkBytes } from "../layer/limits.ts";
import { formatImageReference, type ImageReference } from "../reference.ts";
import { collectVerified, verified } from "../verified.ts";
import { transferBlob } from "./blob-transfer.ts";
import { type RegistrySession, redirectStatuses } from "./registry-session.ts";
import { type Retries, withRetries } from "./retry.ts";

/** A registry that may hold the image: its own, or a mirror of that. */
export interface Place {
  /** For messages. */
  readonly host: string;
  readonly session: RegistrySession;
  /** True when it may say what a tag stands for. */
  readonly resolvesTags: boolean;
}

export interface RegistryImageDeps {
  readonly reference: ImageReference;
  readonly origin: Place;
  /** Asked in this order before the origin. */
  readonly mirrors: readonly Place[];
  readonly retries: Retries;
}

/** A mirror that does not answer has another behind it. */
const mirrorAttempts = 2;

/**
 * An image in a registry. What a digest names may come from any place, because it is checked; what a tag stands for comes from
 * the origin, or from a mirror that may say so. A mirror that sent other bytes than the digest's is not asked again.
 */
export class RegistryImage implements ImageSource {
  readonly name: string;
  readonly registry: string;
  readonly #deps: RegistryImageDeps;
  readonly #distrusted: Set<Place>;

  constructor(deps: RegistryImageDeps, distrusted = new Set<Place>()) {
    this.name = formatImageReference(deps.reference);
    this.registry = deps.reference.registry;
    this.#deps = deps;
    this.#distrusted = distrusted;
  }

  async root(signal: AbortSignal): Promise<FetchedDocument> {
    const { tag, digest } = this.#deps.reference;
    return this.#anywhere(digest !== undefined, signal, async (place, retries) => {
      const fetched = await this.#manifest(place, retries, digest ?? tag ?? "latest", this.name, signal);
      if (digest === undefined || fetched.digest === digest) return fetched;
      // The reference may use the other registered algorithm.
      if (digestOf(fetched.bytes, digestAlgorithm(digest)) === digest) return { ...fetched, digest };
      throw new ServiceError(
        "IMAGE_DIGEST_MISMATCH",
        `the registry answered ${this.name} with other content (${fetched.digest})`,
      );
    });
  }

  async document(descriptor: Descriptor, signal: AbortSignal): Promise<FetchedDocument> {
    const what = `the manifest ${descriptor.digest} of ${this.name}`;
    return this.#anywhere(true, signal, async (place, retries) => {
      const fetched = await this.#manifest(place, retries, descriptor.digest, what, signal);
      async function* once(): AsyncGenerator<Uint8Array> {
        yield fetched.bytes;
      }
      await collectVerified(once(), descriptor, `the manifest of ${this.name}`);
      return { ...fetched, digest: descriptor.digest };
    });
  }

  async config(descriptor: Descriptor, signal: AbortSignal): Promise<Uint8Array> {
    checkBytes("the image's config is", descriptor.sizeBytes, maxManifestBytes);
    const what = `the config of ${this.name}`;
    return this.#anywhere(true, signal, ({ session }, retries) =>
      collectVerified(transferBlob({ session, descriptor, what, from: 0, retries, signal }), descriptor, what),
    );
  }

  async *openLayer(descriptor: Descriptor, { signal, onBytes }: FetchOptions): AsyncGenerator<Uint8Array> {
    const what = `the layer of ${this.name}`;
    const asked = new Set<Place>();
    let bytes = 0;
    onBytes?.(0);
    try {
      for await (const chunk of verified(this.#transfer(descriptor, what, asked, signal), descriptor, what)) {
        onBytes?.((bytes += chunk.length));
        yield chunk;
      }
    } catch (error) {
      if (isServiceError(error, "IMAGE_DIGEST_MISMATCH")) this.#distrust(asked);
      throw error;
    }
  }

  async canRead(descriptor: Descriptor, signal: AbortSignal): Promise<boolean> {
    const { origin, retries } = this.#deps;
    try {
      await withRetries({ ...retries, attempts: mirrorAttempts }, signal, async () => {
        const path = `blobs/${descriptor.digest}`;
        // A redirect is an answer: the registry has judged the login and names where the bytes are.
        const statuses = [200, ...redirectStatuses];
        const response = await origin.session.open({ method: "HEAD", path, what: path, statuses }, signal);
        response.body.on("error", () => {}).destroy();
      });
      return true;
    } catch (error) {
      signal.throwIfAborted();
      if (error instanceof ServiceError) return false;
      throw error;
    }
  }

  related(tag: string): ImageSource {
    const reference = { ...this.#deps.reference, tag, digest: undefined };
    return new RegistryImage({ ...this.#deps, reference }, this.#distrusted);
  }

  /** Bytes from place after place, each going on where the one before ended. */
  async *#transfer(
    descriptor: Descriptor,
    what: string,
    asked: Set<Place>,
    signal: AbortSignal,
  ): AsyncGenerator<Uint8Array> {
    let at = 0;
    for (const place of this.#mirrors(true)) {
      asked.add(place);
      try {
        const { session } = place;
        const retries = this.#mirrorRetries();
        for await (const chunk of transferBlob({ session, descriptor, what, from: at, retries, signal })) {
          at += chunk.length;
          yield chunk;
        }
        return;
      } catch (error) {
        this.#givenUp(place, error, signal);
      }
    }
    const { origin, retries } = this.#deps;
    yield* transferBlob({ session: origin.session, descriptor, what, from: at, retries, signal });
  }

  async #anywhere<T>(
    pinned: boolean,
    signal: AbortSignal,
    attempt: (place: Place, retries: Retries) => Promise<T>,
  ): Promise<T> {
    for (const place of this.#mirrors(pinned)) {
      try {
        return await attempt(place, this.#mirrorRetries());
      } catch (error) {
        this.#givenUp(place, error, signal);
      }
    }
    return attempt(this.#deps.origin, this.#deps.retries);
  }

  #mirrors(pinned: boolean): Place[] {
    return this.#deps.mirrors.filter((place) => (pinned || place.resolvesTags) && !this.#distrusted.has(place));
  }

  #mirrorRetries(): Retries {
    return { ...this.#deps.retries, attempts: mirrorAttempts };
  }

  #givenUp(place: Place, error: unknown, signal: AbortSignal): void {
    signal.throwIfAborted();
    if (!(error instanceof ServiceError)) throw error;
    if (error.reason === "IMAGE_DIGEST_MISMATCH") this.#distrust([place]);
    this.#deps.retries.onRetry?.(`mirror ${place.host}: ${error.message}`, 0);
  }

  #distrust(places: Iterable<Place>): void {
    for (const place of places) this.#distrusted.add(place);
  }

  async #manifest(
    { session }: Place,
    retries: Retries,
    reference: string,
    what: string,
    signal: AbortSignal,
  ): Promise<FetchedDocument> {
    return withRetries(retries, signal, async () => {
      const headers = { accept: acceptedManifestTypes.join(", ") };
      const response = await session.open({ path: `manifests/${reference}`, what, headers }, signal);
      const bytes = await collect(session.body(response, signal), what);
      const digest = digestOf(bytes);
      const told = header(response, "docker-content-digest");
      if (told !== undefined && isDigest(told) && digestOf(bytes, digestAlgorithm(told)) !== told) {
        throw new ServiceError("IMAGE_DIGEST_MISMATCH", `${what} arrived with the digest ${digest} instead of ${told}`);
      }
      return { bytes, digest, mediaType: header(response, "content-type")?.split(";")[0]?.trim() };
    });
  }
}

async function collect(chunks: AsyncIterable<Uint8Array>, what: string): Promise<Uint8Array> {
  const parts: Uint8Array[] = [];
  let bytes = 0;
  for await (const chunk of chunks) {
    bytes += chunk.length;
    checkBytes(`${what}: its manifest is`, bytes, maxManifestBytes);
    parts.push(chunk);
  }
  return Buffer.concat(parts);
}

function header(response: Dispatcher.ResponseData, name: string): string | undefined {
  const value = response.headers[name];
  return typeof value === "string" ? value : undefined;
}
