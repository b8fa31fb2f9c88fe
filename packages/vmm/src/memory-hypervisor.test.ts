import assert from "node:assert/strict";
import { mkdtemp, readFile, rm } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { test } from "node:test";
import { type Clock, isServiceError, mib } from "@unkey/base";
import { type AppBehaviour, type HypervisorFixture, hypervisorContract } from "./hypervisor.contract.ts";
import { type VmSpec, vmFiles } from "./hypervisor.ts";
import { MemoryHypervisor } from "./memory-hypervisor.ts";
import type { MemoryGuest } from "./memory-machine.ts";
import { untilVm } from "./until.ts";

const signal = AbortSignal.timeout(30_000);

async function openFixture(clock?: Clock): Promise<HypervisorFixture & { readonly hypervisor: MemoryHypervisor }> {
  const root = await mkdtemp(join(tmpdir(), "vmm-"));
  const guests = new Map<string, Partial<MemoryGuest>>();
  const hypervisor = new MemoryHypervisor({
    guestFor: (spec) => guests.get(spec.dir) ?? {},
    ...(clock === undefined ? {} : { clock }),
  });
  return {
    hypervisor,
    newSpec: async (app) => {
      const dir = await mkdtemp(join(root, "vm-"));
      guests.set(dir, guestOf(app));
      return specIn(dir);
    },
    [Symbol.asyncDispose]: () => rm(root, { recursive: true }),
  };
}

function guestOf(app: AppBehaviour): Partial<MemoryGuest> {
  switch (app.kind) {
    case "runs":
      return { appOutput: "up\n", onStop: app.onStop === "ignores it" ? "ignore" : { code: 0 } };
    case "exits":
      return { exitAfter: { ms: 1, exit: { code: app.code } } };
    case "dies":
      return { exitAfter: { ms: 1, exit: { signal: app.signal } } };
    case "does not exist":
      return { failBoot: { step: "app", reason: "nonesuch is not in the image's PATH" } };
  }
}

function specIn(dir: string): VmSpec {
  return {
    name: "vm-under-test",
    dir,
    kernelPath: "/kernel",
    initrdPath: "/initrd",
    vcpuCount: 1,
    memoryBytes: 256 * mib,
    accelerator: "memory",
    drives: { basePath: "/base", basePartPaths: [], upperPath: "/upper", configPath: "/config" },
  };
}

hypervisorContract("memory", undefined, openFixture);

test("a failing verb has no effect, and the next one works", async () => {
  await using fixture = await openFixture();
  fixture.hypervisor.inject("boot", { kind: "fail" });
  const vm = await fixture.hypervisor.create(await fixture.newSpec({ kind: "exits", code: 0 }), signal);
  await assert.rejects(vm.boot(signal), (error) => isServiceError(error, "VMM_UNAVAILABLE"));
  assert.equal(vm.state, "created");
  await vm.boot(signal);
  assert.equal(vm.state, "running");
});

test("a hanging verb ends with its caller's patience", async () => {
  await using fixture = await openFixture();
  fixture.hypervisor.inject("pause", { kind: "hang" });
  const vm = await fixture.hypervisor.create(await fixture.newSpec({ kind: "runs", onStop: "exits 0" }), signal);
  await vm.boot(signal);
  await assert.rejects(vm.pause(AbortSignal.timeout(10)), { name: "TimeoutError" });
  assert.equal(vm.state, "running");
});

test("a monitor that dies in a verb is gone for everybody", async () => {
  await using fixture = await openFixture();
  fixture.hypervisor.inject("resume", { kind: "die" });
  const spec = await fixture.newSpec({ kind: "runs", onStop: "exits 0" });
  const vm = await fixture.hypervisor.create(spec, signal);
  await vm.boot(signal);
  await vm.pause(signal);
  await assert.rejects(vm.resume(signal), (error) => isServiceError(error, "VM_GONE"));
  assert.deepEqual(vm.end, { by: "monitor", reason: "process-died" });
  assert.equal(await fixture.hypervisor.find(spec.dir), undefined);
});

test("a late answer comes after the effect", async () => {
  await using fixture = await openFixture();
  fixture.hypervisor.inject("boot", { kind: "late", ms: 60_000 });
  const vm = await fixture.hypervisor.create(await fixture.newSpec({ kind: "runs", onStop: "exits 0" }), signal);
  await assert.rejects(vm.boot(AbortSignal.timeout(10)));
  assert.equal(vm.state, "running");
});

test("a create that dies leaves no VM", async () => {
  await using fixture = await openFixture();
  fixture.hypervisor.inject("create", { kind: "die" });
  const spec = await fixture.newSpec({ kind: "runs", onStop: "exits 0" });
  await assert.rejects(fixture.hypervisor.create(spec, signal), (error) => isServiceError(error, "VM_LAUNCH_FAILED"));
  assert.equal(await fixture.hypervisor.find(spec.dir), undefined);
});

test("a frozen guest does nothing until it runs again", async () => {
  await using fixture = await openFixture();
  const vm = await fixture.hypervisor.create(await fixture.newSpec({ kind: "exits", code: 5 }), signal);
  await vm.boot(signal);
  await vm.pause(signal);
  await new Promise((resolve) => setTimeout(resolve, 20));
  assert.equal(vm.guest.exited, undefined);
  await vm.resume(signal);
  await untilVm(vm, ({ end }) => end !== undefined, signal);
  assert.deepEqual(vm.guest.exited, { code: 5 });
});

test("what the app prints is in its log, and a test can steer the guest by hand", async () => {
  await using fixture = await openFixture();
  const spec = await fixture.newSpec({ kind: "runs", onStop: "exits 0" });
  const vm = await fixture.hypervisor.create(spec, signal);
  await vm.boot(signal);
  await untilVm(vm, ({ guest }) => guest.startedAtUptimeSeconds !== undefined, signal);
  assert.equal(await readFile(vmFiles(spec.dir).appLog, "utf8"), "up\n");
  const machine = fixture.hypervisor.machine(spec.dir);
  machine.addIo("upper", { writeBytes: 10n });
  const before = (await vm.readBlockCounters(signal)).find(({ drive }) => drive === "upper");
  assert.equal(before?.writeBytes, 10n);
  machine.exitApp({ code: 7 });
  assert.deepEqual(vm.guest.exited, { code: 7 });
  assert.equal(vm.state, "ended");
});
