import type { CliContext } from "../context.ts";
import { Gateway } from "./gateway.ts";
import { type ConnectionFlags, resolveTarget } from "./target.ts";

/** The API that this command line names; dispose it to let the process end. */
export function openGateway(context: CliContext, flags: ConnectionFlags): Gateway {
  const { env, home, cwd, clock, signal } = context;
  return new Gateway(resolveTarget({ flags, env, home, cwd }), clock, signal);
}
