import assert from "node:assert/strict";
import { type ChildProcess, spawn } from "node:child_process";
import { once } from "node:events";
import { readFile, rm } from "node:fs/promises";
import { join } from "node:path";
import { after, before, test } from "node:test";
import { AppState, DeploymentState } from "@unkey/api/gateway";
import { helloImage, untilTerminal } from "./harness/deploying.ts";
import { ask } from "./harness/http.ts";
import { apiClient, type Surroundings, surroundings } from "./harness/platform.ts";

const main = join(import.meta.dirname, "../src/main.ts");
let around: Surroundings;
before(async () => {
  around = await surroundings();
});
after(async () => {
  await around?.[Symbol.asyncDispose]();
});

interface Child {
  readonly process: ChildProcess;
  readonly stderr: () => string;
}

function launch(env: Readonly<Record<string, string>>): Child {
  const child = spawn(process.execPath, [main], {
    env: { PATH: process.env["PATH"], ...env },
    stdio: ["ignore", "ignore", "pipe"],
  });
  let text = "";
  child.stderr.on("data", (chunk: Buffer) => (text += chunk.toString("utf8")));
  return { process: child, stderr: () => text };
}

async function exitOf({ process: child }: Child): Promise<number | NodeJS.Signals | null> {
  if (child.exitCode === null && child.signalCode === null) await once(child, "exit");
  return child.exitCode ?? child.signalCode;
}

/** The addresses that a freshly started daemon writes. */
async function addressesOf(child: Child, file: string): Promise<{ rpc: number; ingress: number }> {
  for (;;) {
    const text = await readFile(file, "utf8").catch(() => "");
    const known = text === "" ? undefined : (JSON.parse(text) as { pid: number; addresses: Record<string, string> });
    if (known && known.pid === child.process.pid) {
      const port = (name: string) => Number(known.addresses[name]?.split(":").at(-1));
      return { rpc: port("rpc"), ingress: port("ingress") };
    }
    if (child.process.exitCode !== null) throw new Error(`gatewayd ended: ${child.stderr()}`);
    await new Promise((resolve) => setTimeout(resolve, 20));
  }
}

test("killed with SIGKILL again and again, gatewayd goes on where it was", async () => {
  const file = join(around.dir, "gatewayd.addresses.json");
  const env = around.env({ ADDRESS_FILE: file });
  let child = launch(env);
  const kills: string[] = [];
  /** Kills the daemon at the first pass through a point of the surroundings; thrown before an effect, it prevents that. */
  const killOnce = (name: string) => {
    if (kills.includes(name) || child.process.killed) return;
    kills.push(name);
    child.process.kill("SIGKILL");
    throw new Error("nobody hears the answer");
  };
  around.builderd.before = (method) => {
    if (method === "watchBuild") killOnce("while it builds");
  };
  around.metald.before = (method) => {
    if (method === "bootVm") killOnce("before the boot");
  };
  around.metald.after = (method) => {
    if (method === "reserveCapacity") killOnce("after the reservation");
    if (method === "createVm") killOnce("after the creation");
    if (method === "bootVm") killOnce("after the boot");
  };

  let addresses = await addressesOf(child, file);
  const ca = await readFile(join(around.dataDir, "ingress-ca.crt"), "utf8");
  const key = (await readFile(join(around.dataDir, "bootstrap-key"), "utf8")).trim();
  const client = () => apiClient(`https://localhost:${addresses.rpc}`, ca, key);
  const { deploymentId } = await client().createDeployment({ app: "phoenix", image: helloImage });
  const expected = 5;
  for (let exits = 0; exits < expected; exits++) {
    assert.equal(await exitOf(child), "SIGKILL");
    child = launch(env);
    addresses = await addressesOf(child, file);
  }
  const deployment = await untilTerminal(client(), deploymentId);
  assert.equal(deployment.state, DeploymentState.SUCCEEDED, JSON.stringify(deployment.failure));
  assert.equal(kills.length, expected);
  assert.ok(deployment.steps.some((step) => step.attempts > 1));
  assert.deepEqual(
    around.metald.alive.map(({ vmId }) => vmId),
    deployment.vmIds,
  );
  const answer = await ask({ port: addresses.ingress, ca, host: "phoenix.localhost" });
  assert.equal(answer.body, "hello\n");
  assert.equal((await client().getApp({ app: "phoenix" })).state, AppState.SERVING);

  child.process.kill("SIGTERM");
  assert.equal(await exitOf(child), 0, "an orderly stop");
});

test("wrong settings are all named and end with 78; a missing identity is a refusal to start", async () => {
  const wrong = launch({
    ...around.env({ METALD_ADDRESSES: "nonsense", APP_DOMAIN: "Not A Domain", LISTEN_PORT: "70000" }),
    UNKEY_GATEWAYD_TYPO: "1",
  });
  assert.equal(await exitOf(wrong), 78);
  for (const name of ["METALD_ADDRESSES", "APP_DOMAIN", "LISTEN_PORT", "TYPO"])
    assert.match(wrong.stderr(), new RegExp(name));

  const env = around.env({ IDENTITY_DIR: join(around.dir, "nobody"), DATA_DIR: join(around.dir, "other-data") });
  const refused = launch(env);
  assert.equal(await exitOf(refused), 1);
  await rm(join(around.dir, "other-data"), { recursive: true, force: true });
});
