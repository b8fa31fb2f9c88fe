import { join } from "node:path";
import type { Client } from "@connectrpc/connect";
import { BillingService } from "@unkey/api/billing";
import { newId, systemClock, type TenantId } from "@unkey/base";
import { parseAddress } from "@unkey/daemon";
import { Authority, ensureIdentity, IdentitySource } from "@unkey/pki";
import { callOptions, mintPrincipal, openRpcChannel, type RpcChannel } from "@unkey/rpc";

const trustDomain = "unkey.test";

/** Certificates for the aggregator and for those who call it, of an authority in `folder`. */
export class TestPlatform implements AsyncDisposable {
  readonly #folder: string;
  readonly #authority: Authority;
  readonly #stack = new AsyncDisposableStack();

  constructor(folder: string) {
    this.#folder = folder;
    this.#authority = Authority.open(join(folder, "ca"), { commonName: "Test" });
  }

  /** Settings of an aggregator on this folder and ports of the system's choice. */
  env(): Record<string, string> {
    const prefix = "UNKEY_BILLING_AGGREGATOR_";
    return {
      [`${prefix}IDENTITY_DIR`]: this.#identityDir("billing-aggregator"),
      [`${prefix}DATA_DIR`]: join(this.#folder, "data"),
      [`${prefix}LISTEN_PORT`]: "0",
      [`${prefix}HEALTH_PORT`]: "0",
      [`${prefix}ADDRESS_FILE`]: this.addressFile,
      [`${prefix}LOG_LEVEL`]: "warn",
    };
  }

  get addressFile(): string {
    return join(this.#folder, "address.json");
  }

  /** A service's connection to the aggregator at `host:port`. */
  channel(service: string, address: string): RpcChannel {
    const identity = this.#stack.use(IdentitySource.open(this.#identityDir(service)));
    const channel = openRpcChannel({ peer: "billing-aggregator", address: parseAddress(address), identity });
    return this.#stack.use(channel);
  }

  client(service: string, address: string): Client<typeof BillingService> {
    return this.channel(service, address).client(BillingService);
  }

  /** Call options by which the gateway vouches for a tenant. */
  actingFor(tenantId: string) {
    const identity = this.#stack.use(IdentitySource.open(this.#identityDir("gatewayd"))).current;
    const principal = { tenantId: tenantId as TenantId, subject: "key_1", roles: [], requestId: newId("req") };
    const principalToken = mintPrincipal({ identity, principal, nowMs: systemClock.nowMs() });
    return callOptions({ principalToken });
  }

  #identityDir(service: string): string {
    const dir = join(this.#folder, "identities", service);
    ensureIdentity(this.#authority, dir, { id: { trustDomain, service } });
    return dir;
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.#stack.disposeAsync();
  }
}
