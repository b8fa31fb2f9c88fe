import { createHash, randomUUID } from "node:crypto";
import { existsSync, rmSync } from "node:fs";
import { mkdtemp, readFile, rm } from "node:fs/promises";
import { tmpdir } from "node:os";
import { basename, join } from "node:path";
import type { CliContext, Env } from "../../context.ts";
import { CliFailure, exitCodes, Interrupted } from "../../failure.ts";
import type { Step } from "../../render/step-list.ts";
import type { BuildArg, BuildSecret } from "./build-flags.ts";
import { runEngine } from "./engine-process.ts";
import type { EngineBuild, EngineCommand } from "./engines.ts";
import { type FoundEngine, findEngine } from "./find-engine.ts";

export interface ImageBuild {
  readonly contextDir: string;
  readonly dockerfile: string;
  readonly target: string | undefined;
  /** The platform's: `linux/amd64`. */
  readonly platform: string;
  readonly buildArgs: readonly BuildArg[];
  readonly secrets: readonly BuildSecret[];
}

/** The archive of an image; gone with the disposal. */
export interface BuiltImage extends AsyncDisposable {
  readonly kind: "archive";
  readonly path: string;
  readonly name: string;
  readonly step: Step;
}

export interface BuildProgress {
  readonly onStep: (step: Step) => void;
  /** Each line of the engine's output. */
  readonly onLine: (line: string) => void;
}

const evidenceLines = 20;
const cleanMs = 10_000;

/** Builds a Dockerfile with the engine found. Whatever ends it, a signal included, neither the engine nor a file goes on. */
export async function buildImage(context: CliContext, build: ImageBuild, progress: BuildProgress): Promise<BuiltImage> {
  await using stack = new AsyncDisposableStack();
  const ending = stack.use(endingSignals(context.signal));
  const { signal } = ending;
  const env = engineEnvironment(context.env);
  const startedAtMs = context.clock.nowMs();
  const step = (state: Step["state"], detail: string): Step => ({
    name: "image",
    state,
    startedAtMs,
    endedAtMs: state === "running" ? 0 : context.clock.nowMs(),
    detail,
  });
  const found = await findEngine(env, { cwd: build.contextDir, secrets: build.secrets.length > 0, signal });
  const { name } = found.engine;
  const scratch = await mkdtemp(join(context.env["TMPDIR"] ?? tmpdir(), "unkey-build-"));
  const removeNow = (): void => rmSync(scratch, { recursive: true, force: true });
  process.once("exit", removeNow); // a second Ctrl-C
  stack.defer(async () => {
    await rm(scratch, { recursive: true, force: true });
    process.removeListener("exit", removeNow);
  });
  const request = requestOf(build, scratch, env);
  progress.onStep(step("running", name));
  try {
    await runBuild(found, request, signal, (line) => {
      progress.onStep(step("running", `${name}: ${line}`));
      progress.onLine(line);
    });
  } catch (error) {
    progress.onStep(step("failed", name));
    throw error;
  }
  ending.exitFromNowOn();
  const done = step("done", `built by ${name}`);
  progress.onStep(done);
  const owned = stack.move();
  return {
    kind: "archive",
    path: request.archive,
    name: `${basename(build.contextDir)}.tar`,
    step: done,
    [Symbol.asyncDispose]: () => owned.disposeAsync(),
  };
}

function requestOf(build: ImageBuild, scratch: string, env: Env): EngineBuild {
  const ignoreFile = `${build.dockerfile}.dockerignore`;
  const directory = createHash("sha256").update(build.contextDir).digest("hex").slice(0, 12);
  return {
    ...build,
    ignoreFile: existsSync(ignoreFile) ? ignoreFile : undefined,
    archive: join(scratch, "image.tar"),
    imageIdFile: join(scratch, "image-id"),
    uniqueTag: `unkey-deploy:${randomUUID()}`,
    steadyTag: `unkey-deploy:${directory}`,
    env,
  };
}

async function runBuild(
  { engine, program }: FoundEngine,
  request: EngineBuild,
  signal: AbortSignal,
  onLine: (line: string) => void,
): Promise<void> {
  const said: string[] = [];
  const run = async ({ args, env }: EngineCommand): Promise<void> => {
    const { exitCode } = await runEngine({
      program,
      args,
      env: { ...request.env, ...env },
      cwd: request.contextDir,
      signal,
      onLine: (line) => {
        said.push(line);
        if (said.length > evidenceLines) said.shift();
        onLine(line);
      },
    });
    if (exitCode === 0) return;
    throw new CliFailure(`${engine.name} ${args[0]} failed with exit code ${exitCode}`, {
      nextStep: "Correct what it says and run the command again.",
      evidence: said,
    });
  };
  try {
    await run(engine.build(request));
    if (engine.save !== undefined) await run(engine.save(request, await imageId(request)));
  } finally {
    const clean = engine.clean?.(request);
    if (clean !== undefined) {
      // After a build that failed there is nothing to remove, and what stays is the engine's.
      const options = { program, ...clean, env: request.env, cwd: request.contextDir, onLine: () => undefined };
      await runEngine({ ...options, signal: AbortSignal.timeout(cleanMs) }).catch(() => undefined);
    }
  }
}

async function imageId({ imageIdFile }: EngineBuild): Promise<string> {
  const text = await readFile(imageIdFile, "utf8").catch(() => "");
  return text.trim();
}

/** Our own settings, a key among them, are none of the engine's business. */
function engineEnvironment(env: Env): Env {
  return Object.fromEntries(Object.entries(env).filter(([name]) => !name.startsWith("UNKEY_")));
}

interface EndingSignals extends Disposable {
  readonly signal: AbortSignal;
  /** No engine runs any more: a request to end is followed at once. */
  exitFromNowOn(): void;
}

/** Aborted with `signal`, and when this process is asked to end: the engine is in no group that the terminal reaches. */
function endingSignals(signal: AbortSignal): EndingSignals {
  const asked = new AbortController();
  let exits = false;
  const end = (): void => {
    if (exits) process.exit(exitCodes.interrupted); // the hook on `exit` removes the scratch directory
    asked.abort(new Interrupted());
  };
  const signals = ["SIGTERM", "SIGHUP"] as const;
  for (const each of signals) process.on(each, end);
  return {
    signal: AbortSignal.any([signal, asked.signal]),
    exitFromNowOn: () => {
      exits = true;
    },
    [Symbol.dispose]: () => {
      for (const each of signals) process.removeListener(each, end);
    },
  };
}
