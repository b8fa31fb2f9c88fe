import { runDaemon } from "@unkey/daemon";
import { readConfig } from "./config.ts";
import { startMetald } from "./wiring.ts";

await runDaemon("metald", readConfig, startMetald);
