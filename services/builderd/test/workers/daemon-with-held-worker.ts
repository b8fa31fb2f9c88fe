import { join } from "node:path";
import { runDaemon } from "@unkey/daemon";
import { readConfig, startBuilderd } from "../../src/index.ts";

/* builderd whose workers stand still where the first argument says. */

const workerProgram = [join(import.meta.dirname, "held-worker.ts"), process.argv[2] ?? ""];
await runDaemon("builderd", readConfig, (config, context) => startBuilderd(config, context, { workerProgram }));
