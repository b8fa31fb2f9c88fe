export type { AccessRule } from "./access.ts";
export type { AddressResolver } from "./address.ts";
export {
  type Caller,
  type CallIdentity,
  callerOf,
  callOptions,
  type OutgoingCall,
  type Principal,
  principalHeader,
  requestIdHeader,
} from "./caller.ts";
export { openRpcChannel, type RpcChannel, type RpcChannelOptions } from "./channel.ts";
export { toServiceError } from "./errors.ts";
export { completeError } from "./http-answer.ts";
export { type InMemoryOptions, inMemoryClient } from "./in-memory.ts";
export { explainJson, explainJsonSyntax } from "./malformed.ts";
export { createPipeline, type Pipeline, type PipelineOptions } from "./pipeline.ts";
export { type MintOptions, mintPrincipal } from "./principal.ts";
export { openIdentity, type RpcSettings, readRpcSettings } from "./rpc-settings.ts";
export { type ListenRpcOptions, listenRpc, type RpcServer } from "./server.ts";
export { warmUpValidation } from "./validation.ts";
