import type { DescService } from "@bufbuild/protobuf";
import { type Client, type ConnectRouter, createClient, createRouterTransport } from "@connectrpc/connect";
import { createLogger, type Logger, Metrics } from "@unkey/daemon";
import { authorize } from "./access.ts";
import type { CallIdentity } from "./caller.ts";
import { serviceErrors } from "./channel.ts";
import { createPipeline } from "./pipeline.ts";

export interface InMemoryOptions {
  readonly routes: (router: ConnectRouter) => void;
  /** Who the calls come from; nothing is signed in memory. */
  readonly caller: Omit<CallIdentity, "principalToken">;
  readonly log?: Logger;
  readonly defaultTimeoutMs?: number;
  readonly maxTimeoutMs?: number;
}

/**
 * A client whose calls run the routes in this process, behind the same allow-list, validation, tenant check, deadlines
 * and errors as on a socket, and through the same encoding. For tests of services through their RPCs.
 */
export function inMemoryClient<S extends DescService>(service: S, options: InMemoryOptions): Client<S> {
  const { caller, log = createLogger({ write: () => undefined }) } = options;
  const pipeline = createPipeline({
    ...options,
    log,
    metrics: new Metrics(),
    authenticate: (context) => {
      authorize(context.method, { service: caller.service, hasPrincipal: caller.principal !== undefined });
      return caller;
    },
  });
  const transport = createRouterTransport(options.routes, {
    router: { requestGate: pipeline.requestGate, interceptors: pipeline.interceptors },
  });
  return createClient(service, serviceErrors(transport, { peer: "the service" }));
}
