import { createHash } from "node:crypto";
import type { Client } from "@connectrpc/connect";
import { type Build, BuilderService, BuildState } from "@unkey/api/builder";
import { type BuildId, type Clock, parseId, ServiceError, type TenantId } from "@unkey/base";
import { type Caller, callOptions, type RpcChannel } from "@unkey/rpc";
import type { Builds } from "../ports.ts";

/** A build that ended is answered for so long; after that, asking again builds again. */
const answeredForMs = 10 * 60_000;
const maxAttempts = 100;
const maxRemembered = 1000;
const ended: readonly BuildState[] = [BuildState.COMPLETED, BuildState.FAILED, BuildState.CANCELLED];

/**
 * builderd through its RPCs, for the caller's principal. The n-th build of an image for a tenant always has the same key, so
 * asking twice, from wherever, is one build.
 */
export class RpcBuilds implements Builds {
  readonly #client: Client<typeof BuilderService>;
  readonly #clock: Clock;
  /** The attempt that was answered last, so that earlier ones are not asked about each time. */
  readonly #attempts = new Map<string, number>();

  constructor(channel: RpcChannel, clock: Clock) {
    this.#client = channel.client(BuilderService);
    this.#clock = clock;
  }

  async start(tenantId: TenantId, image: string, caller: Caller): Promise<BuildId> {
    const name = createHash("sha256").update(image).digest("hex");
    const remembered = `${tenantId} ${name}`;
    for (let attempt = this.#attempts.get(remembered) ?? 0; attempt < maxAttempts; attempt++) {
      const build = await this.#client.buildImage(
        {
          tenantId,
          idempotencyKey: `query:${name}:${attempt}`,
          image: { source: { case: "reference", value: image } },
        },
        callOptions(caller),
      );
      this.#remember(remembered, attempt);
      if (!this.#isStale(build)) return parseId("build", build.buildId, "build_id");
    }
    throw new ServiceError("RESOURCE_EXHAUSTED", `${image} was built ${maxAttempts} times for this tenant`);
  }

  #isStale({ state, createdAtMs }: Build): boolean {
    return ended.includes(state) && this.#clock.nowMs() - Number(createdAtMs) > answeredForMs;
  }

  #remember(key: string, attempt: number): void {
    this.#attempts.delete(key);
    this.#attempts.set(key, attempt);
    if (this.#attempts.size <= maxRemembered) return;
    const { value: oldest } = this.#attempts.keys().next();
    if (oldest !== undefined) this.#attempts.delete(oldest);
  }
}
