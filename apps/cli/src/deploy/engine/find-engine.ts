import { accessSync, constants, statSync } from "node:fs";
import { delimiter, isAbsolute, join } from "node:path";
import type { Env } from "../../context.ts";
import { CliFailure, exitCodes } from "../../failure.ts";
import { runEngine } from "./engine-process.ts";
import { type Engine, engines } from "./engines.ts";

export interface FoundEngine {
  readonly engine: Engine;
  /** Path of its program. */
  readonly program: string;
}

/** A daemon that is there answers at once; one that hangs is as good as none. */
const probeMs = 15_000;

/** The first engine that can build here, in the order of the table. Throws what each lacks and what to install. */
export async function findEngine(
  env: Env,
  options: { readonly cwd: string; readonly secrets: boolean; readonly signal: AbortSignal },
): Promise<FoundEngine> {
  const { cwd, secrets, signal } = options;
  const lacking = new Map<string, string>();
  for (const engine of engines) {
    const program = findProgram(engine.name, env);
    if (program === undefined) {
      lacking.set(engine.name, "not installed");
      continue;
    }
    const problem =
      secrets && !engine.takesSecrets
        ? "cannot use --secret without its buildx plugin"
        : await probe(engine, program, { env, cwd, signal });
    if (problem === undefined) return { engine, program };
    if (!lacking.has(engine.name)) lacking.set(engine.name, problem);
  }
  throw new CliFailure("a Dockerfile needs an engine to build it, and none can be used here", {
    nextStep:
      "Install buildah, which needs no daemon (`apt-get install buildah crun`), or start the one that is there; or deploy an image that was built elsewhere.",
    exitCode: exitCodes.usage,
    evidence: [...lacking].map(([name, why]) => `${name}: ${why}`),
  });
}

async function probe(
  engine: Engine,
  program: string,
  { env, cwd, signal }: { readonly env: Env; readonly cwd: string; readonly signal: AbortSignal },
): Promise<string | undefined> {
  for (const args of engine.probes) {
    const said: string[] = [];
    const deadline = AbortSignal.timeout(probeMs);
    try {
      const { exitCode } = await runEngine({
        program,
        args,
        env,
        cwd,
        signal: AbortSignal.any([signal, deadline]),
        onLine: (line) => said.push(line),
      });
      if (exitCode === 0) continue;
    } catch (error) {
      signal.throwIfAborted();
      said.push(deadline.aborted ? `no answer in ${probeMs / 1000} s` : String(error));
    }
    return `${engine.needs} is needed; it says: ${(said.at(-1) ?? "nothing").slice(0, 200)}`;
  }
  return undefined;
}

/** Directories of PATH that count from the working directory are passed over: whoever wrote what is built may have put a program there. */
function findProgram(name: string, env: Env): string | undefined {
  return (env["PATH"] ?? "")
    .split(delimiter)
    .filter(isAbsolute)
    .map((directory) => join(directory, name))
    .find((path) => {
      try {
        accessSync(path, constants.X_OK);
        return statSync(path).isFile();
      } catch {
        return false;
      }
    });
}
