export { type Config, readConfig } from "./config.ts";
export { startGatewayd } from "./wiring.ts";
