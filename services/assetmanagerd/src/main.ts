import { runDaemon } from "@unkey/daemon";
import { readConfig } from "./config.ts";
import { startAssetManager } from "./wiring.ts";

await runDaemon("assetmanagerd", readConfig, startAssetManager);
