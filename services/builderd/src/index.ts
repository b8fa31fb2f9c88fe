export { type Config, readConfig } from "./config.ts";
export { startBuilderd } from "./wiring.ts";
