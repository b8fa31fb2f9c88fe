import { runDaemon } from "@unkey/daemon";
import { readConfig } from "./config.ts";
import { startBillaged } from "./wiring.ts";

await runDaemon("billaged", readConfig, startBillaged);
