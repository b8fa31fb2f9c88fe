import { join } from "node:path";
import { type Clock, ServiceError, systemClock } from "@unkey/base";
import { Agent, type Dispatcher } from "undici";
import { digestAlgorithm, digestHex, digestOf, isDigest } from "../digest.ts";
import { acceptedManifestTypes, type Descriptor, maxManifestBytes } from "../documents.ts";
import type { FetchedDocument, FetchOptions, ImageSource } from "../image-source.ts";
import { checkBytes } from "../layer/limits.ts";
import { formatImageReference, type ImageReference } from "../reference.ts";
import { collectVerified, writeVerified } from "../verified-file.ts";
import { guardedConnector } from "./address-guard.ts";
import { RegistrySession } from "./registry-session.ts";
import { withRetries } from "./retry.ts";
import type { RegistryCredentials } from "./token.ts";
import { isLoopback } from "./transport.ts";

export interface RegistryClientOptions {
  /** `host[:port]` of registries, beside loopback ones, that may be spoken to without TLS. */
  readonly plainHttpRegistries?: readonly string[];
  readonly clock?: Clock;
}

export interface ImageOptions {
  readonly credentials?: RegistryCredentials;
  /** Allows this image's registry to be spoken to without TLS. */
  readonly plainHttp?: boolean;
}

const connectTimeoutMs = 10_000;
/** Longest silence of a registry, before its answer and within it. */
const silenceTimeoutMs = 30_000;
const connectionsPerHost = 8;

/** Pulls from OCI registries. Holds connections, no images and no credentials; dispose it to close them. */
export class RegistryClient implements AsyncDisposable {
  readonly #plainHttpRegistries: ReadonlySet<string>;
  readonly #clock: Clock;
  readonly #agent = newAgent(false);
  /** For registries on this host, which alone may lead to other places on it. */
  readonly #loopbackAgent = newAgent(true);

  constructor(options: RegistryClientOptions = {}) {
    this.#plainHttpRegistries = new Set(options.plainHttpRegistries);
    this.#clock = options.clock ?? systemClock;
  }

  image(reference: ImageReference, options: ImageOptions = {}): ImageSource {
    // Whoever names an image chooses where requests go, and a registry chooses where they are redirected and log in.
    const mayBeHere = isLoopback(reference.registry) || this.#plainHttpRegistries.has(reference.registry);
    const session = new RegistrySession({
      registry: reference.registry,
      repository: reference.repository,
      credentials: options.credentials,
      allowsPlainHttp: (host) =>
        (mayBeHere && isLoopback(host)) ||
        this.#plainHttpRegistries.has(host) ||
        (options.plainHttp === true && host === reference.registry),
      dispatcher: mayBeHere ? this.#loopbackAgent : this.#agent,
      clock: this.#clock,
    });
    return new RegistryImage(reference, session, this.#clock);
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await Promise.all([this.#agent.destroy(), this.#loopbackAgent.destroy()]);
  }
}

function newAgent(allowsLoopback: boolean): Agent {
  return new Agent({
    connect: guardedConnector({ timeoutMs: connectTimeoutMs, allowsLoopback }),
    headersTimeout: silenceTimeoutMs,
    bodyTimeout: silenceTimeoutMs,
    connections: connectionsPerHost,
  });
}

class RegistryImage implements ImageSource {
  readonly name: string;
  readonly #reference: ImageReference;
  readonly #session: RegistrySession;
  readonly #clock: Clock;

  constructor(reference: ImageReference, session: RegistrySession, clock: Clock) {
    this.name = formatImageReference(reference);
    this.#reference = reference;
    this.#session = session;
    this.#clock = clock;
  }

  async root(signal: AbortSignal): Promise<FetchedDocument> {
    const { tag, digest } = this.#reference;
    const fetched = await this.#manifest(digest ?? tag ?? "latest", this.name, signal);
    if (digest === undefined || fetched.digest === digest) return fetched;
    // The reference may use the other registered algorithm.
    if (digestOf(fetched.bytes, digestAlgorithm(digest)) === digest) return { ...fetched, digest };
    throw new ServiceError(
      "IMAGE_DIGEST_MISMATCH",
      `the registry answered ${this.name} with other content (${fetched.digest})`,
    );
  }

  async document(descriptor: Descriptor, signal: AbortSignal): Promise<FetchedDocument> {
    const fetched = await this.#manifest(
      descriptor.digest,
      `the manifest ${descriptor.digest} of ${this.name}`,
      signal,
    );
    async function* once(): AsyncGenerator<Uint8Array> {
      yield fetched.bytes;
    }
    await collectVerified(once(), descriptor, `the manifest of ${this.name}`);
    return { ...fetched, digest: descriptor.digest };
  }

  async config(descriptor: Descriptor, signal: AbortSignal): Promise<Uint8Array> {
    checkBytes("the image's config is", descriptor.sizeBytes, maxManifestBytes);
    return this.#blob(descriptor, "the config", signal, (chunks, what) => collectVerified(chunks, descriptor, what));
  }

  async layer(descriptor: Descriptor, directory: string, { signal, onBytes }: FetchOptions): Promise<string> {
    const path = join(directory, `${digestAlgorithm(descriptor.digest)}-${digestHex(descriptor.digest)}`);
    await this.#blob(descriptor, "the layer", signal, async (chunks, what) => {
      let bytes = 0;
      onBytes?.(0);
      await writeVerified(chunks, descriptor, path, what, (more) => onBytes?.((bytes += more)));
    });
    return path;
  }

  async #manifest(reference: string, what: string, signal: AbortSignal): Promise<FetchedDocument> {
    return withRetries(this.#clock, signal, () =>
      this.#session.get(
        `manifests/${reference}`,
        what,
        { accept: acceptedManifestTypes.join(", ") },
        signal,
        async (response) => {
          const bytes = await collect(response, what);
          const digest = digestOf(bytes);
          const told = header(response, "docker-content-digest");
          if (told !== undefined && isDigest(told) && digestOf(bytes, digestAlgorithm(told)) !== told) {
            throw new ServiceError(
              "IMAGE_DIGEST_MISMATCH",
              `${what} arrived with the digest ${digest} instead of ${told}`,
            );
          }
          return { bytes, digest, mediaType: header(response, "content-type")?.split(";")[0]?.trim() };
        },
      ),
    );
  }

  async #blob<T>(
    descriptor: Descriptor,
    kind: string,
    signal: AbortSignal,
    use: (chunks: AsyncIterable<Uint8Array>, what: string) => Promise<T>,
  ): Promise<T> {
    const subject = `${kind} ${descriptor.digest} of ${this.name}`;
    return withRetries(this.#clock, signal, () =>
      this.#session.get(`blobs/${descriptor.digest}`, subject, {}, signal, (response) =>
        use(response.body as AsyncIterable<Uint8Array>, `${kind} of ${this.name}`),
      ),
    );
  }
}

async function collect(response: Dispatcher.ResponseData, what: string): Promise<Uint8Array> {
  const parts: Uint8Array[] = [];
  let bytes = 0;
  for await (const chunk of response.body as AsyncIterable<Uint8Array>) {
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
