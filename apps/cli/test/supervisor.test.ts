import assert from "node:assert/strict";
import { readFileSync, rmSync, writeFileSync } from "node:fs";
import type { AddressInfo } from "node:net";
import { createServer } from "node:net";
import { join } from "node:path";
import { test } from "node:test";
import { systemClock } from "@unkey/base";
import { takeFileLock } from "@unkey/daemon";
import { findDaemon } from "../src/dev/daemon-process.ts";
import { down } from "../src/dev/down.ts";
import { type Home, openHome } from "../src/dev/home.ts";
import { lastLines, rotateLog } from "../src/dev/log-file.ts";
import { isAlive, listenersOn, processByPid, signalProcess } from "../src/dev/process-table.ts";
import { readStatus } from "../src/dev/status-file.ts";
import { Supervisor } from "../src/dev/supervisor.ts";
import { isSupervised, up } from "../src/dev/up.ts";
import { CliFailure } from "../src/failure.ts";
import { StepList } from "../src/render/step-list.ts";
import { behave, events, fakePlatform } from "./fake-platform.ts";
import { endPlatform, temporaryFolder } from "./run.ts";

const quiet = { write: () => undefined, live: false, columns: 80, color: false };

/** A home whose daemons and supervisor are ended with its block, whatever the test found. */
async function temporaryHome(): Promise<AsyncDisposable & { readonly home: Home }> {
  const folder = await temporaryFolder();
  const home = openHome(folder.path);
  const { daemons } = fakePlatform(home);
  return {
    home,
    [Symbol.asyncDispose]: async () => {
      const mains = daemons.map(({ main }) => main);
      await endPlatform(home.root, mains);
      await folder[Symbol.asyncDispose]();
    },
  };
}

function supervise(home: Home, lines: string[] = []): Supervisor {
  return new Supervisor({
    home,
    platform: fakePlatform(home),
    ports: "auto",
    env: process.env,
    clock: systemClock,
    log: (line) => lines.push(line),
  });
}

function upOptions(home: Home) {
  return {
    home,
    clock: systemClock,
    steps: new StepList(quiet, Date.now),
    signal: new AbortController().signal,
    env: process.env,
    supervisorArgv: [join(import.meta.dirname, "fake-platform.ts"), home.root],
  };
}

async function until(condition: () => boolean): Promise<void> {
  while (!condition()) await systemClock.sleep(20);
}

const pidsOf = (home: Home) =>
  fakePlatform(home).daemons.map(({ main }) => findDaemon(main, home.root).map(({ pid }) => pid));
const order = (home: Home, event: string) =>
  events(home)
    .map((line) => line.split(" "))
    .filter(([, what]) => what === event)
    .map(([name]) => name);

test("daemons start after what they depend on, and stop in reverse", async () => {
  await using temporary = await temporaryHome();
  const { home } = temporary;
  const supervisor = supervise(home);
  await supervisor.start();
  assert.deepEqual(order(home, "start"), ["store", "metald", "front"]);
  const status = readStatus(home);
  assert.equal(status?.phase, "running");
  assert.deepEqual(
    status.daemons.map(({ state }) => state),
    ["ready", "ready", "ready"],
  );
  assert.deepEqual(
    status.tasks.map(({ state, detail }) => [state, detail]),
    [["done", "blue"]],
  );
  assert.equal(readFileSync(join(home.root, "fake/announced"), "utf8"), status.daemons[2]?.addresses["health"]);
  await supervisor.stop();
  assert.deepEqual(order(home, "stop"), ["front", "metald", "store"]);
  assert.equal(readStatus(home)?.phase, "stopped");
  assert.deepEqual(pidsOf(home), [[], [], []]);
});

test("a daemon that dies is started again on its old port, and that is said", async () => {
  await using temporary = await temporaryHome();
  const { home } = temporary;
  const lines: string[] = [];
  const supervisor = supervise(home, lines);
  await supervisor.start();
  const before = supervisor.status.daemons[1];
  assert.ok(before?.process);
  process.kill(before.process.pid, "SIGKILL");
  await until(() => supervisor.status.daemons[1]?.restarts === 1 && supervisor.status.daemons[1].state === "ready");
  const after = supervisor.status.daemons[1];
  assert.notEqual(after?.process?.pid, before.process.pid);
  assert.deepEqual(after?.addresses, before.addresses);
  assert.equal(after?.lastExit, "ended by SIGKILL");
  assert.match(
    lines.join("\n"),
    /metald \(pid \d+\): ended by SIGKILL\nmetald is started again in \d+ ms \(restart 1\)/,
  );
  await supervisor.stop();
});

test("settings that a daemon refuses end the start with its own words and leave nothing running", async () => {
  await using temporary = await temporaryHome();
  const { home } = temporary;
  behave(home, "metald", { exitCode: 78, complaint: "metald: UNKEY_METALD_X is required\n" });
  await assert.rejects(supervise(home).start(), (error: unknown) => {
    assert.ok(error instanceof CliFailure);
    assert.equal(error.message, "metald refuses its settings (exit code 78)");
    assert.deepEqual(error.evidence, ["metald: UNKEY_METALD_X is required"]);
    return true;
  });
  assert.deepEqual(order(home, "start"), ["store", "metald"]);
  assert.deepEqual(pidsOf(home), [[], [], []]);
  const status = readStatus(home);
  assert.deepEqual([status?.phase, status?.failure?.evidence.length], ["failed", 1]);
});

test("a daemon that cannot start is tried three times", async () => {
  await using temporary = await temporaryHome();
  const { home } = temporary;
  behave(home, "front", {
    exitCode: 1,
    complaint: '{"level":"error","message":"start failed","error":{"causes":["Error: no luck"]}}\n',
  });
  await assert.rejects(supervise(home).start(), (error: unknown) => {
    assert.ok(error instanceof CliFailure);
    assert.match(error.message, /front does not start \(exit code 1\)/);
    assert.deepEqual(error.evidence.at(-1), "error: start failed: Error: no luck");
    return true;
  });
  assert.equal(order(home, "start").filter((name) => name === "front").length, 3);
});

test("there is one supervisor for a home, in one process and across processes", async () => {
  await using temporary = await temporaryHome();
  const { home } = temporary;
  {
    using first = takeFileLock(home.lockFile);
    assert.ok(first);
    assert.equal(takeFileLock(home.lockFile), undefined);
    assert.equal(isSupervised(home), true);
  }
  assert.equal(isSupervised(home), false);
});

test("up detaches, a second up changes nothing, kill -9 leaves the daemons, the next up adopts them, down ends all", async () => {
  await using temporary = await temporaryHome();
  const { home } = temporary;
  const first = await up(upOptions(home));
  assert.deepEqual([first.alreadyUp, first.status.phase], [false, "running"]);
  const pids = pidsOf(home);
  assert.ok(pids.every((found) => found.length === 1));

  const again = await up(upOptions(home));
  assert.equal(again.alreadyUp, true);
  assert.deepEqual(again.status.supervisor, first.status.supervisor);

  // The supervisor dies; so would, a moment later, a daemon that it had not even noted.
  signalProcess(first.status.supervisor, "SIGKILL");
  await until(() => !isAlive(first.status.supervisor));
  assert.equal(isSupervised(home), false);
  assert.deepEqual(pidsOf(home), pids);

  const adopting = await up(upOptions(home));
  assert.deepEqual(
    [adopting.alreadyUp, adopting.status.daemons.map(({ adopted }) => adopted)],
    [false, [true, true, true]],
  );
  assert.deepEqual(pidsOf(home), pids);
  assert.equal(events(home).filter((line) => line.includes(" start ")).length, 3);

  // An adopted daemon that dies is noticed and started again.
  process.kill(pids[0]?.[0] ?? 0, "SIGKILL");
  await until(() => readStatus(home)?.daemons[0]?.restarts === 1 && readStatus(home)?.daemons[0]?.state === "ready");

  let drained = 0;
  const { daemons } = fakePlatform(home);
  const drain = () => {
    drained++;
    assert.ok(
      pidsOf(home).every((found) => found.length === 1),
      "everything runs while VMs are stopped",
    );
    return Promise.resolve();
  };
  const result = await down({ home, daemons, clock: systemClock, drain });
  assert.deepEqual([drained, result.stopped], [1, ["store", "metald", "front"]]);
  assert.deepEqual(pidsOf(home), [[], [], []]);
  assert.equal(isSupervised(home), false);
  assert.deepEqual(order(home, "stop"), ["front", "metald", "store"]);
  assert.deepEqual((await down({ home, daemons, clock: systemClock, drain })).stopped, []);
  assert.equal(drained, 1);
});

test("down ends the daemons of a supervisor that was killed, and stops before that when the VMs cannot be stopped", async () => {
  await using temporary = await temporaryHome();
  const { home } = temporary;
  const { status } = await up(upOptions(home));
  signalProcess(status.supervisor, "SIGKILL");
  await until(() => !isAlive(status.supervisor));
  const { daemons } = fakePlatform(home);
  const drain = () => Promise.reject(new Error("metald hangs"));
  await assert.rejects(
    down({ home, daemons, clock: systemClock, drain }),
    /VMs could not be stopped, so everything still runs/,
  );
  assert.ok(pidsOf(home).every((found) => found.length === 1));
  assert.deepEqual((await down({ home, daemons, clock: systemClock })).stopped, ["store", "metald", "front"]);
  assert.deepEqual(order(home, "stop"), ["front", "metald", "store"]);
});

test("of two ups at the same time one starts the platform and both see it up", async () => {
  await using temporary = await temporaryHome();
  const { home } = temporary;
  const [first, second] = await Promise.all([up(upOptions(home)), up(upOptions(home))]);
  assert.deepEqual(first.status.supervisor, second.status.supervisor);
  assert.equal(events(home).filter((line) => line.includes(" start ")).length, 3);
  assert.equal((await down({ home, daemons: fakePlatform(home).daemons, clock: systemClock })).stopped.length, 3);
});

test("a documented port that is taken is named with who has it, before anything starts", async () => {
  await using temporary = await temporaryHome();
  const { home } = temporary;
  const server = createServer();
  const listening = Promise.withResolvers<void>();
  server.listen(0, "127.0.0.1", listening.resolve);
  await listening.promise;
  const { port } = server.address() as AddressInfo;
  try {
    assert.deepEqual(
      listenersOn([port]).map((listener) => listener.owner?.endsWith(`(pid ${process.pid})`)),
      [true],
    );
    const platform = fakePlatform(home);
    const daemons = platform.daemons.map((spec) => ({ ...spec, ports: { health: spec.name === "front" ? port : 1 } }));
    const supervisor = new Supervisor({
      home,
      platform: { ...platform, daemons },
      ports: "default",
      env: process.env,
      clock: systemClock,
      log: () => undefined,
    });
    await assert.rejects(supervisor.start(), (error: unknown) => {
      assert.ok(error instanceof CliFailure);
      assert.match(
        error.message,
        new RegExp(`port ${port} \\(front health\\) is taken by .* \\(pid ${process.pid}\\)`),
      );
      assert.match(error.nextStep, /--ports auto/);
      return true;
    });
    assert.deepEqual(events(home), []);
  } finally {
    server.close();
  }
});

test("Ctrl-C during up leaves the start going", async () => {
  await using temporary = await temporaryHome();
  const { home } = temporary;
  writeFileSync(join(home.root, "fake/front.unready"), "");
  const { Interrupted } = await import("../src/failure.ts");
  const interrupt = new AbortController();
  const waiting = up({ ...upOptions(home), signal: interrupt.signal });
  await until(() => readStatus(home)?.daemons[2]?.state === "starting");
  interrupt.abort(new Interrupted());
  await assert.rejects(
    waiting,
    (error: unknown) => error instanceof Interrupted && error.hint.includes("unkey dev status"),
  );
  rmSync(join(home.root, "fake/front.unready"));
  await until(() => readStatus(home)?.phase === "running");
  await down({ home, daemons: fakePlatform(home).daemons, clock: systemClock });
});

test("a log is cut while its writer goes on, and never grows past its bound", async () => {
  await using folder = await temporaryFolder();
  const path = join(folder.path, "x.log");
  const { openSync, writeSync, closeSync, statSync } = await import("node:fs");
  const fd = openSync(path, "a");
  writeSync(fd, "old\n".repeat(300));
  assert.equal(rotateLog(path, 2400), false);
  writeSync(fd, "old\n");
  writeSync(fd, "old\n".repeat(300));
  assert.equal(rotateLog(path, 2400), true);
  writeSync(fd, "new\n");
  closeSync(fd);
  assert.equal(readFileSync(path, "utf8"), "new\n");
  assert.equal(statSync(`${path}.1`).size, 4 * 601);
  assert.deepEqual(lastLines(path, 5, 4000), ["new"]);
});

test("a process is known by its pid and start time", () => {
  const self = processByPid(process.pid);
  assert.ok(self && isAlive(self));
  assert.equal(isAlive({ pid: process.pid, startTicks: "1" }), false);
  assert.equal(signalProcess({ pid: process.pid, startTicks: "1" }, "SIGKILL"), false);
});
