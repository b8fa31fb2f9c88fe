export { readConfig } from "./config.ts";
export { startAssetManager } from "./wiring.ts";
