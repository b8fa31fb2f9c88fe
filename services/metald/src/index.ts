export { readConfig } from "./config.ts";
export { startMetald } from "./wiring.ts";
