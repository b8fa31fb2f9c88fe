import { runDaemon } from "@unkey/daemon";
import { readConfig } from "./config.ts";
import { startGatewayd } from "./wiring.ts";

await runDaemon("gatewayd", readConfig, startGatewayd);
