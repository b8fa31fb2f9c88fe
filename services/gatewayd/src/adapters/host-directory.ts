import { type Client, ConnectError } from "@connectrpc/connect";
import { ErrorInfoSchema } from "@unkey/api/common";
import { type Host, MetalService } from "@unkey/api/metal";
import { type Clock, isServiceError, ServiceError, systemClock } from "@unkey/base";
import type { Logger } from "@unkey/daemon";
import type { RpcChannel } from "@unkey/rpc";

/** How old a host's description may be when room is looked for. */
const freshMs = 1000;
const askTimeoutMs = 2000;

interface Entry {
  readonly name: string;
  readonly client: Client<typeof MetalService>;
  host?: Host;
  seenAtMs: number;
  reachable: boolean;
  asking?: Promise<void> | undefined;
}

/** The hosts named in the configuration. A host's id is learned from the host itself. */
export class HostDirectory {
  readonly #entries: readonly Entry[];
  readonly #clock: Clock;
  readonly #log: Logger;

  constructor(options: {
    readonly hosts: readonly { readonly name: string; readonly channel: RpcChannel }[];
    readonly log: Logger;
    readonly clock?: Clock;
  }) {
    this.#entries = options.hosts.map(({ name, channel }) => ({
      name,
      client: channel.client(MetalService),
      seenAtMs: Number.NEGATIVE_INFINITY,
      reachable: false,
    }));
    this.#log = options.log;
    this.#clock = options.clock ?? systemClock;
  }

  /** The hosts that answer now. */
  async reachable(): Promise<Host[]> {
    await Promise.all(this.#entries.map((entry) => this.#refresh(entry)));
    return this.#entries.flatMap(({ host, reachable }) => (host && reachable ? [host] : []));
  }

  /**
   * Calls the metald of a host. Throws HOST_UNREACHABLE when no configured host has that id or the host does not answer;
   * what it answers is passed on.
   */
  async on<T>(hostId: string, body: (metal: Client<typeof MetalService>) => Promise<T>): Promise<T> {
    const metal = await this.client(hostId);
    try {
      return await body(metal);
    } catch (error) {
      throw isSilence(error)
        ? new ServiceError("HOST_UNREACHABLE", `the host ${hostId} does not answer`, { cause: error })
        : error;
    }
  }

  /** The metald of a host, for streams. Throws HOST_UNREACHABLE when no configured host has that id. */
  async client(hostId: string): Promise<Client<typeof MetalService>> {
    const known = () => this.#entries.find((entry) => entry.host?.hostId === hostId);
    if (!known()) await Promise.all(this.#entries.map((entry) => this.#refresh(entry)));
    const entry = known();
    if (!entry) throw new ServiceError("HOST_UNREACHABLE", `no metald that answers is the host ${hostId}`);
    return entry.client;
  }

  /** Throws when a configured host does not answer: for health checks. */
  async check(): Promise<void> {
    await Promise.all(this.#entries.map((entry) => this.#refresh(entry)));
    const silent = this.#entries.filter((entry) => !entry.reachable).map((entry) => entry.name);
    if (silent.length > 0) throw new Error(`no answer from ${silent.join(", ")}`);
  }

  async #refresh(entry: Entry): Promise<void> {
    if (this.#clock.nowMs() - entry.seenAtMs < freshMs) return;
    await (entry.asking ??= this.#ask(entry).finally(() => {
      entry.asking = undefined;
    }));
  }

  async #ask(entry: Entry): Promise<void> {
    try {
      entry.host = await entry.client.getHost({}, { timeoutMs: askTimeoutMs });
      entry.seenAtMs = this.#clock.nowMs();
      entry.reachable = true;
    } catch (error) {
      if (entry.reachable) this.#log.warn("a host does not answer", { host: entry.name, error });
      entry.reachable = false;
    }
  }
}

/** True when a call got no answer at all; a host may well answer that something behind it is down. */
function isSilence(error: unknown): boolean {
  if (!isServiceError(error, "DEPENDENCY_UNAVAILABLE")) return false;
  return !(error.cause instanceof ConnectError && error.cause.findDetails(ErrorInfoSchema).length > 0);
}
