#!/usr/bin/env node
import { existsSync } from "node:fs";
import { enableCompileCache } from "node:module";
import { join } from "node:path";
import { processContext } from "./context.ts";

const context = processContext();
// Half of a command's time is compiling; a shared folder in /tmp would run what another user put there.
if (existsSync(context.home)) enableCompileCache(join(context.home, "cache/compile"));
const { runCli } = await import("./cli.ts");
process.exitCode = await runCli(process.argv.slice(2), context);
