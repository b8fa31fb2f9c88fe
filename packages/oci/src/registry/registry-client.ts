import { type Clock, systemClock } from "@unkey/base";
import { Agent } from "undici";
import type { ImageSource } from "../image-source.ts";
import type { ImageReference } from "../reference.ts";
import { guardedConnector } from "./address-guard.ts";
import { type Place, RegistryImage } from "./registry-image.ts";
import { RegistrySession } from "./registry-session.ts";
import { defaultAttempts, type OnRetry } from "./retry.ts";
import type { RegistryCredentials } from "./token.ts";
import { isLoopback } from "./transport.ts";

/** What holds copies of a registry's images. It is asked without a login, so everything in it may be read by every tenant. */
export interface RegistryMirror {
  /** `host[:port]`. */
  readonly host: string;
  /** Put before the repository's name: `docker-cache/` where `library/debian` is `docker-cache/library/debian`. Empty for none. */
  readonly prefix: string;
  /** True when it may say what a tag stands for; without it, the origin is asked for that. */
  readonly resolvesTags: boolean;
}

export interface RegistryClientOptions {
  /** `host[:port]` of registries, beside loopback ones, that may be spoken to without TLS. */
  readonly plainHttpRegistries?: readonly string[];
  /** By the registry's host as in image names (`docker.io`), asked in order before it. */
  readonly mirrors?: ReadonlyMap<string, readonly RegistryMirror[]>;
  /** PEM certificates of authorities that are trusted beside the system's. */
  readonly caCertificates?: readonly string[];
  readonly clock?: Clock;
  /** Yields a number in [0, 1): jitter of pauses. */
  readonly random?: () => number;
}

export interface ImageOptions {
  readonly credentials?: RegistryCredentials;
  /** Allows this image's registry to be spoken to without TLS. */
  readonly plainHttp?: boolean;
  /** Told why and for how long before each pause, and of each mirror that is given up. */
  readonly onRetry?: OnRetry;
}

const connectTimeoutMs = 5_000;
/** Longest silence of a registry, before its answer and within it. */
const silenceTimeoutMs = 30_000;
const connectionsPerHost = 8;

/** Pulls from OCI registries. Holds connections, no images and no credentials; dispose it to close them. */
export class RegistryClient implements AsyncDisposable {
  readonly #options: RegistryClientOptions;
  readonly #plainHttpRegistries: ReadonlySet<string>;
  readonly #clock: Clock;
  readonly #agent: Agent;
  /** For registries on this host, which alone may lead to other places on it. */
  readonly #loopbackAgent: Agent;

  constructor(options: RegistryClientOptions = {}) {
    const { caCertificates = [] } = options;
    this.#options = options;
    this.#plainHttpRegistries = new Set(options.plainHttpRegistries);
    this.#clock = options.clock ?? systemClock;
    this.#agent = newAgent(false, caCertificates);
    this.#loopbackAgent = newAgent(true, caCertificates);
  }

  /** The image of a name. Connects to nothing yet. */
  image(reference: ImageReference, options: ImageOptions = {}): ImageSource {
    const { mirrors, random = Math.random } = this.#options;
    const { registry, repository } = reference;
    return new RegistryImage({
      reference,
      origin: this.#place({ registry, repository, ...options }),
      mirrors: (mirrors?.get(registry) ?? []).map(({ host, prefix, resolvesTags }) =>
        this.#place({ registry: host, repository: `${prefix}${repository}`, resolvesTags }),
      ),
      retries: { clock: this.#clock, random, onRetry: options.onRetry, attempts: defaultAttempts },
    });
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await Promise.all([this.#agent.destroy(), this.#loopbackAgent.destroy()]);
  }

  #place(
    options: Pick<ImageOptions, "credentials" | "plainHttp"> & {
      readonly registry: string;
      readonly repository: string;
      readonly resolvesTags?: boolean;
    },
  ): Place {
    const { registry, repository, credentials, plainHttp = false, resolvesTags = true } = options;
    // Whoever names an image chooses where requests go, and a registry chooses where they are redirected and log in.
    const mayBeHere = isLoopback(registry) || this.#plainHttpRegistries.has(registry);
    const session = new RegistrySession({
      registry,
      repository,
      credentials,
      allowsPlainHttp: (host) =>
        (mayBeHere && isLoopback(host)) || this.#plainHttpRegistries.has(host) || (plainHttp && host === registry),
      dispatcher: mayBeHere ? this.#loopbackAgent : this.#agent,
      clock: this.#clock,
    });
    return { host: registry, session, resolvesTags };
  }
}

function newAgent(allowsLoopback: boolean, caCertificates: readonly string[]): Agent {
  return new Agent({
    connect: guardedConnector({ timeoutMs: connectTimeoutMs, allowsLoopback, caCertificates }),
    headersTimeout: silenceTimeoutMs,
    bodyTimeout: silenceTimeoutMs,
    allowH2: false, // layers side by side want connections of their own, and what breaks one must not break the others
    connections: connectionsPerHost,
  });
}
