import assert from "node:assert/strict";
import { spawn } from "node:child_process";
import { once } from "node:events";
import { readFileSync, statSync } from "node:fs";
import { after, before, suite, test } from "node:test";
import { setTimeout as delay } from "node:timers/promises";
import { isServiceError } from "@unkey/base";
import { type VmRecord, type VmSpec, vmFiles } from "./hypervisor.ts";
import { isSameProcess } from "./process-identity.ts";
import { openQemuFixture, type QemuFixture, qemuSkipReason } from "./testing/qemu-test-host.ts";
import { untilVm } from "./until.ts";

const skip = qemuSkipReason();

/** Starts the VM of the spec on standard input, prints its record, and waits to be killed. */
const starterProgram = `
import { text } from "node:stream/consumers";
import { QemuHypervisor } from ${JSON.stringify(new URL("index.ts", import.meta.url).href)};
const spec = JSON.parse(await text(process.stdin));
const signal = AbortSignal.timeout(60000);
const vm = await new QemuHypervisor().create(spec, signal);
await vm.boot(signal);
process.stdout.write(JSON.stringify(vm.record) + "\\n");
setInterval(() => undefined, 1000);
`;

suite("a VM and the death of others", skip === undefined ? {} : { skip }, () => {
  let fixture: QemuFixture;
  before(async () => {
    fixture = await openQemuFixture();
  });
  after(() => fixture[Symbol.asyncDispose]());

  const patience = (): AbortSignal => AbortSignal.timeout(90_000);

  /** Has another process start the VM and kills that process with SIGKILL. */
  async function startAndKillStarter(spec: VmSpec): Promise<VmRecord> {
    const starter = spawn(process.execPath, ["--input-type=module", "-e", starterProgram], {
      stdio: ["pipe", "pipe", "inherit"],
    });
    starter.stdin.end(JSON.stringify(spec));
    const [line] = (await once(starter.stdout, "data", { signal: patience() })) as [Buffer];
    starter.kill("SIGKILL");
    await once(starter, "exit");
    return JSON.parse(line.toString()) as VmRecord;
  }

  test("a VM outlives its starter's kill -9, and what it says meanwhile is not lost", async () => {
    const spec = await fixture.newShellSpec("echo up; sleep 1; exit 42");
    const record = await startAndKillStarter(spec);
    const signal = patience();
    // Nobody is connected while the app starts and ends.
    while (!readFileSync(vmFiles(spec.dir).controlLog, "utf8").includes("exited"))
      await delay(50, undefined, { signal });
    assert.ok(isSameProcess(record));
    assert.deepEqual(await fixture.hypervisor.find(spec.dir), record);
    await using vm = await fixture.hypervisor.attach(record, signal);
    assert.deepEqual(vm.guest.exited, { code: 42 });
    await untilVm(vm, ({ state }) => state === "ended", signal);
    assert.ok((await vm.readBlockCounters(signal)).some(({ readBytes }) => readBytes > 0n));
    await vm.destroy(signal);
  });

  test("an adopted VM is paused, resumed and shut down like one's own", async () => {
    const spec = await fixture.newShellSpec("trap 'exit 3' TERM; while :; do echo tick; sleep 0.1; done");
    const record = await startAndKillStarter(spec);
    const signal = patience();
    const { appLog } = vmFiles(spec.dir);
    await using vm = await fixture.hypervisor.attach(record, signal);
    try {
      assert.equal(vm.state, "running");
      while (statSync(appLog).size === 0) await delay(20, undefined, { signal });
      await vm.pause(signal);
      await using observer = await attachAfter(vm, record, signal);
      assert.equal(observer.state, "paused");
      await observer.resume(signal);
      await observer.requestShutdown({ graceMs: 30_000 }, signal);
      await untilVm(observer, ({ state }) => state === "ended", signal);
      assert.deepEqual(observer.guest.exited, { code: 3 });
      await observer.destroy(signal);
    } finally {
      if (isSameProcess(record)) process.kill(record.pid, "SIGKILL");
    }
  });

  test("the death of a monitor is noticed, of a child and of an adopted one", async () => {
    const signal = patience();
    const adoptedRecord = await startAndKillStarter(await fixture.newShellSpec("sleep 1000"));
    await using adopted = await fixture.hypervisor.attach(adoptedRecord, signal);
    await using child = await fixture.hypervisor.create(await fixture.newShellSpec("sleep 1000"), signal);
    await child.boot(signal);
    for (const vm of [adopted, child]) {
      process.kill(vm.record.pid, "SIGKILL");
      await untilVm(vm, ({ state }) => state === "gone", signal);
      assert.deepEqual(vm.end, { by: "monitor", reason: "process-died" });
      assert.equal(vm.guest.exited, undefined);
    }
  });

  test("a monitor has one owner: a second is told that somebody else holds it", async () => {
    const signal = patience();
    await using vm = await fixture.hypervisor.create(await fixture.newShellSpec(""), signal);
    await assert.rejects(fixture.hypervisor.attach(vm.record, signal), (error) => {
      assert.ok(isServiceError(error, "VMM_UNAVAILABLE"));
      assert.match(error.message, /serves another client/);
      return true;
    });
    assert.equal(vm.state, "created");
    await vm.destroy(signal);
  });

  test("a record of another boot or of a reused pid names no VM", async () => {
    const signal = patience();
    const spec = await fixture.newShellSpec("exit 0");
    await using vm = await fixture.hypervisor.create(spec, signal);
    for (const change of [{ startTicks: vm.record.startTicks + 1 }, { bootId: "another" }]) {
      await using other = await fixture.hypervisor.attach({ ...vm.record, ...change }, signal);
      assert.equal(other.state, "gone");
      await other.destroy(signal);
    }
    assert.equal(vm.state, "created");
    assert.ok(isSameProcess(vm.record));
    await vm.destroy(signal);
  });

  /** Lets go with one handle and takes hold with another: a monitor serves one client. */
  async function attachAfter(first: AsyncDisposable, record: VmRecord, signal: AbortSignal) {
    await first[Symbol.asyncDispose]();
    return fixture.hypervisor.attach(record, signal);
  }
});
