import assert from "node:assert/strict";
import { accessSync, statSync } from "node:fs";
import { createServer } from "node:http";
import type { AddressInfo } from "node:net";
import { join } from "node:path";
import { test } from "node:test";
import { assembleImage } from "@unkey/oci";
import { profilePath } from "../src/connection/profile.ts";
import { platformDaemons } from "../src/dev/daemon-environment.ts";
import { findDaemon } from "../src/dev/daemon-process.ts";
import { openHome } from "../src/dev/home.ts";
import type { ObservedPlatform } from "../src/dev/observe.ts";
import { isAlive, signalProcess } from "../src/dev/process-table.ts";
import { readStatus } from "../src/dev/status-file.ts";
import { endPlatform, temporaryFolder, unkey } from "./run.ts";

/**
 * The real six daemons as processes, with VMs that are only simulated: nothing runs in them, so a server of this test
 * answers the health check in their place.
 */
const simulated = { UNKEY_METALD_HYPERVISOR: "memory" };

function skipReason(): string | false {
  try {
    accessSync("/usr/bin/mkfs.erofs");
    return false;
  } catch {
    return "needs mkfs.erofs (package erofs-utils)";
  }
}

test("up, deploy, look, stop, pay, kill -9, down: the whole command against the real daemons", {
  skip: skipReason(),
}, async () => {
  await using folder = await temporaryFolder();
  const home = openHome(join(folder.path, "home"));
  const env = { ...process.env, ...simulated };
  const daemons = platformDaemons(env);
  const pids = () => daemons.map(({ main }) => findDaemon(main, home.root).map(({ pid }) => pid));
  const cli = (...argv: string[]) => unkey({ home: home.root, cwd: folder.path, env }, ...argv);
  const ok = async (...argv: string[]) => {
    const run = await cli(...argv);
    assert.equal(run.exitCode, 0, `unkey ${argv.join(" ")}\n${run.out}${run.err}`);
    return run.out;
  };
  const json = async (...argv: string[]): Promise<unknown> => JSON.parse(await ok(...argv, "--json"));

  await using stack = new AsyncDisposableStack();
  stack.defer(() =>
    endPlatform(
      home.root,
      daemons.map(({ main }) => main),
    ),
  );
  const app = createServer((_request, response) => response.end("hello from the app\n"));
  const listening = Promise.withResolvers<void>();
  app.listen(0, "0.0.0.0", listening.resolve);
  await listening.promise;
  stack.defer(() => {
    app.closeAllConnections();
    app.close();
  });
  const appPort = String((app.address() as AddressInfo).port);
  await assembleImage({
    directory: join(folder.path, "image"),
    files: [{ path: "bin/app", mode: 0o755, content: "#!/bin/sh\n" }],
    config: { Entrypoint: ["/bin/app"] },
  });

  assert.match(await ok("dev", "up", "--ports", "auto"), /gatewayd +ready .* ingress 127\.0\.0\.1:\d+/);
  const before = pids();
  assert.ok(before.every((found) => found.length === 1));
  assert.match(await ok("dev", "up"), /gatewayd +ready/);
  assert.deepEqual(pids(), before);
  assert.equal(statSync(profilePath(home.root)).mode & 0o777, 0o600);

  const deployed = await ok("deploy", "image", "--app", "hello", "--port", appPort);
  assert.match(
    deployed,
    /✓ upload .*\n(?:.*\n)*✓ build .*\n(?:.*\n)*✓ health .*\n(?:.*\n)*hello serves after .* at https:\/\/hello\.localhost:\d+\n$/,
  );
  const { url, vmIds } = (await json("apps", "hello")) as { url: string; vmIds: string[] };
  assert.match(await ok("vms"), new RegExp(`${vmIds[0]} {2}hello {2}running`));
  assert.match(await ok("platform"), /with memory, acceleration none/);
  assert.match(await ok("builds"), /completed/);
  assert.match(await ok("deployments"), /succeeded/);

  // The supervisor is killed: everything runs on, and the next up takes it over.
  const { supervisor } = readStatus(home) ?? assert.fail("no status");
  signalProcess(supervisor, "SIGKILL");
  while (isAlive(supervisor)) await new Promise((resolve) => setTimeout(resolve, 20));
  assert.match((await cli("dev", "status")).out, /no supervisor runs: `unkey dev up` adopts the daemons/);
  await ok("dev", "up", "--ports", "auto");
  assert.deepEqual(pids(), before);
  const observed = (await json("dev", "status")) as ObservedPlatform;
  assert.deepEqual(
    observed.daemons.map(({ state }) => state),
    daemons.map(() => "ready"),
  );

  assert.match(await ok("stop", "hello"), /hello is stopped/);
  const usage = await untilComplete(() => json("usage"));
  assert.deepEqual(usage.appNames[usage.report.apps[0]?.appId ?? ""], "hello");
  assert.ok(Number(usage.report.vms[0]?.samplesSeen) > 0);
  assert.match(await ok("usage"), /^APP \/ VM .*\nhello .*\n {2}vm_[0-9a-z]+ .*\ntotal .* USD\n/);
  const missing = await cli("vms", "show", "vm_00000000000000000000000000");
  assert.equal(missing.exitCode, 3, missing.err);

  const down = (await json("dev", "down")) as { stopped: string[] };
  assert.deepEqual(
    down.stopped,
    daemons.map(({ name }) => name),
  );
  assert.deepEqual(
    pids(),
    daemons.map(() => []),
  );
  assert.equal((await cli("apps")).exitCode, 5);

  // Ports and key stay, so the address that a user keeps goes on working.
  await ok("dev", "up", "--ports", "auto");
  assert.equal(((await json("apps", "hello")) as { url: string }).url, url);
  assert.equal(await ok("start", "hello"), `hello serves at ${url}\n`);
  await ok("dev", "down", "--keep-vms");
});

interface UsageJson {
  readonly appNames: Readonly<Record<string, string>>;
  readonly report: {
    readonly apps: ReadonlyArray<{ readonly appId: string }>;
    readonly vms: ReadonlyArray<{ readonly complete: boolean; readonly samplesSeen: string }>;
  };
}

async function untilComplete(ask: () => Promise<unknown>): Promise<UsageJson> {
  for (;;) {
    const usage = (await ask()) as UsageJson;
    if (usage.report.vms.length > 0 && usage.report.vms.every(({ complete }) => complete)) return usage;
    await new Promise((resolve) => setTimeout(resolve, 100));
  }
}
