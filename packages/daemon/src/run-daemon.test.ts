import assert from "node:assert/strict";
import { type ChildProcess, spawn } from "node:child_process";
import { once } from "node:events";
import { test } from "node:test";
import { configExitCode } from "./run-daemon.ts";

const door = new URL("./index.ts", import.meta.url).href;

/** A daemon in a process of its own; `start` is the body of its start function, with `context` at hand. */
function spawnDaemon(start: string, env: Record<string, string> = {}) {
  const script = `import { runDaemon } from ${JSON.stringify(door)};
    await runDaemon("billaged", () => ({}), async (config, context) => { ${start} });`;
  const child = spawn(process.execPath, ["--input-type=module-typescript", "-e", script], {
    env: { PATH: process.env["PATH"], UNKEY_BILLAGED_HEALTH_PORT: "0", ...env },
    stdio: ["ignore", "pipe", "pipe"],
  });
  let output = "";
  let errors = "";
  child.stdout.on("data", (chunk: Buffer) => (output += chunk.toString()));
  child.stderr.on("data", (chunk: Buffer) => (errors += chunk.toString()));
  return {
    child,
    output: () => output,
    errors: () => errors,
    async line(message: string) {
      while (!output.includes(`"message":"${message}"`))
        await Promise.race([once(child.stdout, "data"), once(child, "close")]);
    },
  };
}

async function exitCode(child: ChildProcess): Promise<number | null> {
  const [code] = (await once(child, "close")) as [number | null];
  return code;
}

const closes = "return { [Symbol.asyncDispose]: async () => console.log('closed') };";
const hangs =
  "return { [Symbol.asyncDispose]: () => new Promise((resolve) => context.abort.addEventListener('abort', resolve)) };";

test("SIGTERM stops in order and exits 0", async () => {
  const daemon = spawnDaemon(closes);
  await daemon.line("started");
  daemon.child.kill("SIGTERM");
  assert.equal(await exitCode(daemon.child), 0);
  assert.match(daemon.output(), /closed\n.*"message":"stopped"/s);
});

test("a second signal aborts what drains", async () => {
  const daemon = spawnDaemon(hangs, { UNKEY_BILLAGED_GRACE: "10m" });
  await daemon.line("started");
  daemon.child.kill("SIGINT");
  await daemon.line("stop asked for");
  daemon.child.kill("SIGINT");
  assert.equal(await exitCode(daemon.child), 0);
  assert.match(daemon.output(), /"message":"stopped".*"aborted":true/);
});

test("wrong settings are listed on stderr, each on its line", async () => {
  const daemon = spawnDaemon(closes, { UNKEY_BILLAGED_GRACE: "x", UNKEY_BILLAGED_NOPE: "1" });
  assert.equal(await exitCode(daemon.child), configExitCode);
  assert.equal(daemon.errors().trim().split("\n").length, 2);
  assert.match(daemon.errors(), /UNKEY_BILLAGED_NOPE is not a setting/);
});

test("an error that nobody caught is logged with its causes, and the process ends", async () => {
  for (const start of [
    "setTimeout(() => { throw new Error('outer', { cause: new Error('inner') }) }); return { [Symbol.asyncDispose]: async () => {} };",
    "void Promise.reject(new Error('outer', { cause: new Error('inner') })); return { [Symbol.asyncDispose]: async () => {} };",
    "throw new Error('outer', { cause: new Error('inner') });",
  ]) {
    const daemon = spawnDaemon(start);
    assert.equal(await exitCode(daemon.child), 1);
    assert.match(daemon.output(), /"causes":\["Error: outer","Error: inner"\]/);
  }
});

test("a daemon outlives the reader of its logs", async () => {
  const daemon = spawnDaemon(
    "setInterval(() => context.log.info('tick'), 5); setTimeout(() => process.exit(7), 300); return { [Symbol.asyncDispose]: async () => {} };",
  );
  await daemon.line("started");
  daemon.child.stdout?.destroy();
  assert.equal(await exitCode(daemon.child), 7);
});
