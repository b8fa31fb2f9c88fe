export { writeFileAtomic } from "./atomic-file.ts";
export {
  type DaemonContext,
  type DaemonOptions,
  healthPorts,
  type ReadConfig,
  type RunningDaemon,
  type ServiceName,
  type Start,
  startDaemon,
} from "./daemon.ts";
export { type EveryOptions, everyMs } from "./every.ts";
export { lockDataDir, takeFileLock } from "./file-lock.ts";
export { type DependencyReport, Health, type HealthReport, type Layer } from "./health.ts";
export { createLogger, type LogFields, type Logger, type LoggerOptions, type LogLevel } from "./log.ts";
export { type Counter, type Gauge, type Histogram, type Labels, latencyBucketsSeconds, Metrics } from "./metrics.ts";
export { configExitCode, runDaemon } from "./run-daemon.ts";
export { Secret } from "./secret.ts";
export { type Address, ConfigError, parseAddress, type SettingOptions, Settings } from "./settings.ts";
