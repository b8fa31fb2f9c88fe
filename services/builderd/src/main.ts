import { runDaemon } from "@unkey/daemon";
import { readConfig } from "./config.ts";
import { startBuilderd } from "./wiring.ts";

await runDaemon("builderd", readConfig, startBuilderd);
