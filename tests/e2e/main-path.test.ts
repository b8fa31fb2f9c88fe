import assert from "node:assert/strict";
import { test } from "node:test";
import { type DevPlatform, until } from "@unkey/testkit";
import { cgroupCpuTimeUs, hypervisorPid, skipReason, tapBytes } from "./harness/host.ts";
import type { UsageJson, VmJson } from "./harness/json.ts";
import { sharePlatform } from "./harness/shared-platform.ts";
import { listWindows } from "./harness/windows.ts";

/** One platform, one app, in the order of its life: each test goes on where the one before stopped. */
let platform: DevPlatform;
let instance: string;
let url: string;
let vmId: string;
sharePlatform(skipReason, (...started) => ([platform, instance] = started));

test("deploys an OCI layout into a microVM behind https", { skip: skipReason }, async () => {
  await platform.unkey(["deploy", await platform.helloLayout(), "--app", "hello"]);
  const [vm] = await platform.json<{ vms: VmJson[] }>(["vms"]).then(({ vms }) => vms);
  assert.ok(vm);
  assert.equal(vm.state, "VM_STATE_RUNNING");
  vmId = vm.vmId;
  ({ url } = await platform.json<{ url: string }>(["apps", "hello"]));
  assert.match(url, /^https:\/\/hello\.localhost:\d+$/);
  const answer = await platform.get(url);
  assert.equal(answer.status, 200);
  assert.match(answer.body.toString(), /Hello from a microVM/);
});

test("shows what the program wrote", { skip: skipReason }, async () => {
  const { stdout } = await platform.unkey(["logs", "hello"]);
  assert.match(stdout, /response:200/);
});

for (const daemon of ["metald", "billaged", "billing-aggregator"]) {
  test(`the VM outlives a SIGKILL of ${daemon} and serves on`, { skip: skipReason }, async () => {
    const hypervisor = hypervisorPid(vmId);
    assert.ok(hypervisor, "the VM has a hypervisor process");
    await platform.killDaemon(daemon);
    for (let i = 0; i < 5; i++) assert.equal((await platform.get(url, "/load.bin")).body.length, 65_536);
    assert.equal(hypervisorPid(vmId), hypervisor, "same process: adopted, not restarted");
    const { vms } = await platform.json<{ vms: VmJson[] }>(["vms"]);
    assert.equal(vms.find((vm) => vm.vmId === vmId)?.state, "VM_STATE_RUNNING");
  });
}

test("the bill of the stopped VM equals the host's counters", { skip: skipReason }, async () => {
  await platform.unkey(["stop", "hello"]);
  const vm = (await platform.json<{ vms: VmJson[] }>(["vms"])).vms.find((each) => each.vmId === vmId);
  assert.equal(vm?.state, "VM_STATE_STOPPED");
  let usage: UsageJson | undefined;
  await until("the usage is complete", async () => {
    usage = await platform.json<UsageJson>(["usage"]);
    return usage.report.vms?.find((line) => line.vmId === vmId)?.complete === true;
  });
  const line = usage?.report.vms?.find((each) => each.vmId === vmId);
  assert.ok(line);
  const windows = await listWindows(platform.home, usage?.report.tenantId ?? "", vmId);
  const baseline = windows[0]?.opening;
  const final = windows.at(-1)?.closing;
  assert.ok(baseline && final);
  // The VM's cgroup and namespace stay until it is deleted, and nothing runs in them any more.
  const tap = tapBytes(instance);
  assert.equal(final.cpuTimeUs, BigInt(cgroupCpuTimeUs(instance, vmId)));
  assert.equal(final.netInBytes, BigInt(tap.guestIn));
  assert.equal(final.netOutBytes, BigInt(tap.guestOut));
  const used = (meter: "cpuTimeUs" | "netInBytes" | "netOutBytes" | "diskReadBytes" | "diskWriteBytes") =>
    (final[meter] ?? 0n) - (baseline[meter] ?? 0n);
  assert.equal(BigInt(line.quantities.cpuTimeUs), used("cpuTimeUs"));
  assert.equal(BigInt(line.quantities.netInBytes), used("netInBytes"));
  assert.equal(BigInt(line.quantities.netOutBytes), used("netOutBytes"));
  assert.equal(BigInt(line.quantities.diskReadBytes), used("diskReadBytes"));
  assert.equal(BigInt(line.quantities.diskWriteBytes), used("diskWriteBytes"));
  assert.ok(
    line.gaps?.every((gap) => gap.countersBridged),
    "what the killed daemons missed is bridged by the counters",
  );
});

test("a second deployment of the same image builds nothing", { skip: skipReason }, async () => {
  const { stdout, stderr } = await platform.unkey(["deploy", await platform.helloLayout(), "--app", "again"]);
  assert.match(stdout + stderr, /build .*cached/);
});

test("a guest is frozen, goes on, and comes back from a reboot as a new incarnation", {
  skip: skipReason,
}, async () => {
  const app = await platform.json<{ url: string; vmIds: string[] }>(["apps", "again"]);
  const again = app.vmIds[0] ?? "";
  const stateOf = async () => (await platform.json<VmJson>(["vms", "show", again])).state;
  await platform.unkey(["vms", "pause", again]);
  assert.equal(await stateOf(), "VM_STATE_PAUSED");
  await platform.unkey(["vms", "resume", again]);
  assert.equal((await platform.get(app.url)).status, 200);
  await platform.unkey(["vms", "reboot", again]);
  assert.equal(await stateOf(), "VM_STATE_RUNNING");
  assert.equal((await platform.json<{ incarnation: number }>(["vms", "show", again])).incarnation, 2);
  await until("the rebooted guest serves", async () => (await platform.get(app.url)).status === 200);
});
