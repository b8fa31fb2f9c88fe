export { type Config, readConfig } from "./config.ts";
export { startBillaged } from "./wiring.ts";
