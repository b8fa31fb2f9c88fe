import { runDaemon } from "@unkey/daemon";
import { readConfig } from "./config.ts";
import { startBillingAggregator } from "./wiring.ts";

await runDaemon("billing-aggregator", readConfig, startBillingAggregator);
