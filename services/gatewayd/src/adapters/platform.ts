import type { CallOptions, Client } from "@connectrpc/connect";
import { BillingService } from "@unkey/api/billing";
import { BuilderService } from "@unkey/api/builder";
import { type Clock, systemClock, type TenantId } from "@unkey/base";
import type { IdentitySource } from "@unkey/pki";
import { callOptions, mintPrincipal, type RpcChannel } from "@unkey/rpc";
import type { HostDirectory } from "./host-directory.ts";

/** For whom a call to another service is made. */
export interface Acting {
  readonly tenantId: TenantId;
  /** An API key's id, or `gatewayd` when a deployment acts. */
  readonly subject: string;
  readonly roles: readonly string[];
  readonly requestId: string;
}

export interface CallLimits {
  readonly signal: AbortSignal;
  readonly timeoutMs?: number;
}

export interface PlatformOptions {
  readonly identity: IdentitySource;
  readonly builder: RpcChannel;
  readonly billing: RpcChannel;
  readonly hosts: HostDirectory;
  readonly clock?: Clock;
}

/** The services behind the gateway. Each call carries a principal that only the gateway can sign. */
export class Platform {
  readonly builder: Client<typeof BuilderService>;
  readonly billing: Client<typeof BillingService>;
  readonly hosts: HostDirectory;
  readonly #identity: IdentitySource;
  readonly #clock: Clock;

  constructor(options: PlatformOptions) {
    this.builder = options.builder.client(BuilderService);
    this.billing = options.billing.client(BillingService);
    this.hosts = options.hosts;
    this.#identity = options.identity;
    this.#clock = options.clock ?? systemClock;
  }

  /** Options of one call on behalf of `acting`. */
  call(acting: Acting, limits: CallLimits): CallOptions {
    const principalToken = mintPrincipal({
      identity: this.#identity.current,
      principal: acting,
      nowMs: this.#clock.nowMs(),
    });
    return callOptions({ principalToken, requestId: acting.requestId, ...limits });
  }
}
