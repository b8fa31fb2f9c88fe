export { readConfig } from "./config.ts";
export { startBillingAggregator } from "./wiring.ts";
