export { appNameFrom, isAppName } from "./app-name.ts";
export { type Backoff, backoffDelayMs } from "./backoff.ts";
export { type Clock, systemClock } from "./clock.ts";
export { isErrno } from "./errno.ts";
export { type CatalogueEntry, type ErrorCode, type ErrorReason, errorCatalogue } from "./error-catalogue.ts";
export { causeChain, isServiceError, ServiceError, type ServiceErrorOptions } from "./errors.ts";
export {
  type ApiKeyId,
  type AppId,
  type AssetId,
  type BuildId,
  type DeploymentId,
  type HostId,
  type Id,
  type IdPrefix,
  isId,
  type LeaseId,
  newId,
  parseId,
  type RandomBytes,
  type TenantId,
  type UploadId,
  type VmId,
} from "./ids.ts";
export { KeyedTurns } from "./keyed-turns.ts";
export { acceptedEvents, nextState, type Transitions } from "./transitions.ts";
export { formatBytes, gib, kib, mib, parseByteSize } from "./units.ts";
