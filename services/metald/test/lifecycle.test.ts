import assert from "node:assert/strict";
import { test } from "node:test";
import { type ErrorReason, gib, isServiceError, mib, newId, ServiceError } from "@unkey/base";
import { eventually, MetalBed, nothing, stateName } from "./support/metal-bed.ts";

const refused = (reason: ErrorReason, text?: RegExp) => (error: unknown) => {
  assert.ok(isServiceError(error, reason), String(error));
  if (text) assert.match(error.message, text);
  return true;
};

test("a VM goes through its life, twice booted, and leaves nothing", async (t) => {
  const bed = await MetalBed.open(t);
  const client = bed.client();
  const wish = bed.wish();
  const id = { tenantId: bed.tenantId, vmId: wish.vmId };
  const created = await client.createVm(wish);
  assert.equal(stateName(created), "CREATED");
  assert.equal(created.incarnation, 0);
  assert.equal(stateName(await client.bootVm(id)), "RUNNING");
  assert.equal(stateName(await client.pauseVm(id)), "PAUSED");
  assert.equal(stateName(await client.resumeVm(id)), "RUNNING");
  const stopped = await client.shutdownVm(id);
  assert.equal(stateName(stopped), "STOPPED");
  assert.deepEqual(stopped.exit?.outcome, { case: "code", value: 0 });
  const again = await client.bootVm(id);
  assert.deepEqual([stateName(again), again.incarnation, again.exit], ["RUNNING", 2, undefined]);
  const rebooted = await client.rebootVm(id);
  assert.deepEqual([stateName(rebooted), rebooted.incarnation], ["RUNNING", 3]);
  assert.equal(stateName(await client.deleteVm(id)), "DELETED");
  assert.deepEqual(await bed.leftovers(), nothing);
  assert.equal(stateName(await client.deleteVm(id)), "DELETED");
  assert.deepEqual((await client.listVms({ tenantId: bed.tenantId })).vms, []);
  const [tombstone] = (await client.listVms({ tenantId: bed.tenantId, includeDeleted: true })).vms;
  assert.equal(tombstone?.incarnation, 3);
  await eventually(() => bed.billaged.stopped.length === 3 || undefined, "the ends of three incarnations");
});

test("asking again for what is so is success; asking for what cannot be is refused with what can", async (t) => {
  const bed = await MetalBed.open(t);
  const client = bed.client();
  const wish = bed.wish();
  const id = { tenantId: bed.tenantId, vmId: wish.vmId };
  const first = await client.createVm(wish);
  assert.equal((await client.createVm(wish)).revision, first.revision);
  await assert.rejects(client.createVm({ ...wish, appId: "app_1" }), refused("VM_ID_REUSED"));
  await assert.rejects(
    client.pauseVm(id),
    refused("VM_STATE_CONFLICT", /is created takes no pause; it takes boot, shutdown, delete/),
  );
  const booted = await client.bootVm(id);
  assert.equal((await client.bootVm(id)).revision, booted.revision);
  await client.pauseVm(id);
  await client.pauseVm(id);
  await assert.rejects(client.bootVm(id), refused("VM_STATE_CONFLICT"));
  await client.shutdownVm(id);
  await client.shutdownVm(id);
  await assert.rejects(client.getVm({ ...id, vmId: newId("vm") }), refused("VM_NOT_FOUND"));
  await assert.rejects(client.getVm({ ...id, vmId: "vm_1" }), refused("INVALID_REQUEST"));
});

test("one tenant neither sees nor touches another's VM; the operator sees all", async (t) => {
  const bed = await MetalBed.open(t);
  const vm = await bed.createAndBoot();
  const stranger = newId("tenant");
  const client = bed.client(stranger);
  const id = { tenantId: stranger, vmId: vm.vmId };
  for (const call of [client.getVm, client.shutdownVm, client.deleteVm, client.pauseVm] as const) {
    await assert.rejects(async () => call(id), refused("VM_NOT_FOUND"));
  }
  await assert.rejects(client.getVm({ ...id, tenantId: bed.tenantId }), refused("TENANT_MISMATCH"));
  await assert.rejects(
    bed.client(stranger).createVm({ ...bed.wish(vm.vmId), tenantId: stranger }),
    refused("VM_ID_REUSED"),
  );
  assert.deepEqual((await client.listVms({ tenantId: stranger })).vms, []);
  assert.equal((await bed.client("operator").listVms({})).vms.length, 1);
});

test("refuses what the host cannot hold, in the words of an operator, and takes nothing for it", async (t) => {
  const bed = await MetalBed.open(t, { capacity: { memoryBytes: gib, vcpuCount: 3 } });
  const client = bed.client();
  const sized = (vcpuCount: number, memoryBytes: number, diskBytes: number = 64 * mib) =>
    bed.wish(newId("vm"), { resources: { vcpuCount, memoryBytes: BigInt(memoryBytes), diskBytes: BigInt(diskBytes) } });
  await assert.rejects(
    client.createVm(sized(1, 2 * gib)),
    refused("VM_TOO_LARGE", /2 GiB of memory .* gives VMs 1 GiB in all/),
  );
  await assert.rejects(client.createVm(sized(8, 256 * mib)), refused("VM_TOO_LARGE", /8 vCPUs .* has 4 CPUs/));
  await assert.rejects(client.createVm(sized(1, 256 * mib, 200 * gib)), refused("VM_TOO_LARGE", /of disk/));
  await assert.rejects(client.createVm(sized(1, 256 * mib + 1)), refused("INVALID_REQUEST", /multiple of 1 MiB/));
  await client.createVm(sized(1, 512 * mib));
  await assert.rejects(
    client.createVm(sized(1, 512 * mib)),
    refused("HOST_FULL", /704 MiB of memory of which 320 MiB are free/),
  );
  await assert.rejects(client.createVm(sized(3, 96 * mib)), refused("HOST_FULL", /3 vCPUs of which 2 are free/));
  const wish = bed.wish();
  await assert.rejects(client.createVm({ ...wish, vmId: "x" }), refused("INVALID_REQUEST", /vm_id/));
  await assert.rejects(
    client.createVm(bed.wish(newId("vm"), { process: { argv: [] } })),
    refused("GUEST_CONFIG_INVALID", /there is no program/),
  );
  await assert.rejects(
    client.createVm(bed.wish(newId("vm"), { process: { argv: ["x"], stopSignal: "SIGNOPE" } })),
    refused("INVALID_REQUEST", /SIGNOPE/),
  );
  assert.equal((await client.getHost({})).vmCount, 1);
});

test("held room counts until it is used, released or over", async (t) => {
  const bed = await MetalBed.open(t, { capacity: { memoryBytes: gib } });
  const client = bed.client();
  const { tenantId } = bed;
  const wish = bed.wish(newId("vm"), {
    resources: { vcpuCount: 1, memoryBytes: BigInt(512 * mib), diskBytes: BigInt(64 * mib) },
  });
  const { resources } = wish.spec;
  const [held, released] = [newId("rsv"), newId("rsv")];
  await client.reserveCapacity({ tenantId, reservationId: released, resources, holdMs: 600_000 });
  await client.releaseReservation({ tenantId, reservationId: released });
  await client.reserveCapacity({ tenantId, reservationId: held, resources, holdMs: 600_000 });
  await client.reserveCapacity({ tenantId, reservationId: held, resources, holdMs: 600_000 });
  await assert.rejects(
    client.reserveCapacity({ tenantId, reservationId: newId("rsv"), resources, holdMs: 1_000 }),
    refused("HOST_FULL"),
  );
  await assert.rejects(client.createVm(wish), refused("HOST_FULL"));
  await client.createVm({ ...wish, reservationId: held });
  const { allocated } = await client.getHost({});
  assert.equal(allocated?.vcpuCount, 1);
});

test("addresses rest before they are given again", async (t) => {
  const bed = await MetalBed.open(t, { subnet: "10.192.0.0/29" }); // five slots
  const client = bed.client();
  const seen = new Set<string>();
  for (let i = 0; i < 5; i++) {
    const wish = bed.wish();
    await client.createVm(wish);
    seen.add(String((await bed.networks.present())[0]));
    await client.deleteVm({ tenantId: bed.tenantId, vmId: wish.vmId });
  }
  assert.equal(seen.size, 5);
  await assert.rejects(client.createVm(bed.wish()), refused("HOST_ADDRESSES_EXHAUSTED"));
});

test("a program that ends by itself stops its VM, with the truth about how", async (t) => {
  const ends = [{ code: 3 }, { signal: 11 }] as const;
  let made = 0;
  const bed = await MetalBed.open(t, { guestFor: () => ({ exitAfter: { ms: 0, exit: ends[made++] ?? { code: 0 } } }) });
  for (const expected of [
    { case: "code", value: 3 },
    { case: "signal", value: "SIGSEGV" },
  ]) {
    const { vmId } = await bed.createAndBoot();
    const vm = await eventually(async () => {
      const now = await bed.client().getVm({ tenantId: bed.tenantId, vmId });
      return stateName(now) === "STOPPED" ? now : undefined;
    }, "the VM stops");
    assert.deepEqual({ ...vm.exit?.outcome }, expected);
    assert.ok(vm.endedAtMs >= vm.startedAtMs);
  }
});

test("a guest that cannot start its program fails the VM with its reason and last lines", async (t) => {
  const bed = await MetalBed.open(t, {
    guestFor: () => ({ failBoot: { step: "app", reason: "/bin/app does not exist in the image" } }),
  });
  const vmId = newId("vm");
  await assert.rejects(bed.createAndBoot(vmId), refused("GUEST_FAILED", /does not exist in the image/));
  const vm = await bed.client().getVm({ tenantId: bed.tenantId, vmId });
  assert.equal(stateName(vm), "FAILED");
  assert.equal(vm.failure?.reason, "GUEST_FAILED");
  assert.equal(await bed.hypervisor.find(bed.paths(vmId).runDir), undefined);
  await assert.rejects(
    bed.client().bootVm({ tenantId: bed.tenantId, vmId }),
    refused("VM_STATE_CONFLICT", /GUEST_FAILED/),
  );
  await bed.client().deleteVm({ tenantId: bed.tenantId, vmId });
  assert.deepEqual(await bed.leftovers(), nothing);
});

test("a boot that hangs is tried once more, as an incarnation of its own; twice is a failure", async (t) => {
  let boots = 0;
  let hangs = 1;
  const bed = await MetalBed.open(t, {
    bootTimeoutMs: 200,
    guestFor: () => ({ startDelayMs: boots++ < hangs ? 3_600_000 : 0 }),
  });
  const vm = await bed.createAndBoot();
  assert.deepEqual([stateName(vm), vm.incarnation, boots], ["RUNNING", 2, 2]);
  hangs = Number.POSITIVE_INFINITY;
  const vmId = newId("vm");
  await assert.rejects(bed.createAndBoot(vmId), refused("VM_BOOT_TIMEOUT"));
  assert.equal(await bed.hypervisor.find(bed.paths(vmId).runDir), undefined);
  assert.equal(stateName(await bed.client().getVm({ tenantId: bed.tenantId, vmId })), "FAILED");
});

test("a hypervisor that dies fails its VM and no other", async (t) => {
  const bed = await MetalBed.open(t);
  const [victim, witness] = [await bed.createAndBoot(), await bed.createAndBoot()];
  bed.machine(victim.vmId).die();
  const vm = await eventually(async () => {
    const now = await bed.client().getVm({ tenantId: bed.tenantId, vmId: victim.vmId });
    return stateName(now) === "FAILED" ? now : undefined;
  }, "the VM fails");
  assert.equal(vm.failure?.reason, "VM_DIED");
  assert.equal(vm.exit?.outcome.case, "unknownBecause");
  assert.equal(stateName(await bed.client().getVm({ tenantId: bed.tenantId, vmId: witness.vmId })), "RUNNING");
});

test("stops a guest that does not answer when its grace is over, and at once when forced", async (t) => {
  const bed = await MetalBed.open(t, { guestFor: () => ({ onStop: "ignore" }) });
  const first = await bed.createAndBoot();
  const killed = await bed.client().shutdownVm({ tenantId: bed.tenantId, vmId: first.vmId });
  assert.deepEqual({ ...killed.exit?.outcome }, { case: "signal", value: "SIGKILL" });
  const second = await bed.createAndBoot();
  const forced = await bed.client().shutdownVm({ tenantId: bed.tenantId, vmId: second.vmId, force: true });
  assert.deepEqual([stateName(forced), forced.exit?.outcome.case], ["STOPPED", "unknownBecause"]);
});

test("deleting does not wait for a guest that is still coming up", async (t) => {
  const bed = await MetalBed.open(t, { bootTimeoutMs: 3_600_000, guestFor: () => ({ startDelayMs: 3_600_000 }) });
  const vmId = newId("vm");
  const booting = bed.createAndBoot(vmId);
  const id = { tenantId: bed.tenantId, vmId };
  await eventually(async () => {
    const vm = await bed
      .client()
      .getVm(id)
      .catch(() => undefined);
    return vm && stateName(vm) === "BOOTING" ? vm : undefined;
  }, "booting");
  const [boot, deleted] = await Promise.allSettled([booting, bed.client().deleteVm(id)]);
  assert.ok(boot.status === "rejected" && isServiceError(boot.reason, "VM_BOOT_INTERRUPTED"));
  assert.equal(deleted.status, "fulfilled");
  assert.deepEqual(await bed.leftovers(), nothing);
});

test("a failed creation keeps nothing, tells why, and tells it again", async (t) => {
  const bed = await MetalBed.open(t);
  bed.assets.failure = new ServiceError("VM_NOT_FOUND", "there is no such asset");
  const wish = bed.wish();
  await assert.rejects(bed.client().createVm(wish), refused("VM_NOT_FOUND"));
  bed.assets.failure = undefined;
  assert.deepEqual(await bed.leftovers(), nothing);
  await assert.rejects(bed.client().createVm(wish), refused("VM_NOT_FOUND"));
  await bed.client().deleteVm({ tenantId: bed.tenantId, vmId: wish.vmId });
});

test("drains: every VM ends, new ones are refused, host parts go, and with deletion everything", async (t) => {
  const bed = await MetalBed.open(t);
  const ids = [await bed.createAndBoot(), await bed.createAndBoot()].map((vm) => vm.vmId);
  await bed.client().pauseVm({ tenantId: bed.tenantId, vmId: ids[0] ?? "" });
  await bed.client().createVm(bed.wish());
  const operator = bed.client("operator");
  const stopped = await Array.fromAsync(operator.drainHost({}));
  assert.deepEqual(stopped.map(stateName), ["STOPPED", "STOPPED", "STOPPED"]);
  await assert.rejects(bed.client().createVm(bed.wish()), refused("HOST_DRAINING"));
  assert.equal((await operator.getHost({})).draining, true);
  const left = await bed.leftovers();
  assert.deepEqual([left["networks"], left["cgroups"]], [[], []]);
  // What a drain gave back is made again.
  assert.equal(stateName(await bed.client().bootVm({ tenantId: bed.tenantId, vmId: ids[0] ?? "" })), "RUNNING");
  assert.equal((await bed.networks.present()).length, 1);
  const deleted = await Array.fromAsync(operator.drainHost({ deleteVms: true }));
  assert.deepEqual(deleted.map(stateName), ["DELETED", "DELETED", "DELETED"]);
  assert.deepEqual(await bed.leftovers(), nothing);
});

test("leases are renewed, and taken anew where they were forgotten", async (t) => {
  const bed = await MetalBed.open(t);
  const { vmId } = await bed.createAndBoot();
  const before = bed.assets.leases.get(vmId);
  const signal = new AbortController().signal;
  await bed.run.service.renewLeases(signal);
  assert.equal(bed.assets.leases.get(vmId), before);
  bed.assets.leases.clear();
  await bed.run.service.renewLeases(signal);
  assert.notEqual(bed.assets.leases.get(vmId), undefined);
  await bed.client().deleteVm({ tenantId: bed.tenantId, vmId });
  assert.deepEqual(await bed.leftovers(), nothing);
});

test("lists page by page, newest first", async (t) => {
  const bed = await MetalBed.open(t);
  const made: string[] = [];
  for (let i = 0; i < 5; i++) {
    const wish = bed.wish();
    await bed.client().createVm(wish);
    made.unshift(wish.vmId);
  }
  const seen: string[] = [];
  for (let pageToken = ""; ; ) {
    const page = await bed.client().listVms({ tenantId: bed.tenantId, pageSize: 2, pageToken });
    seen.push(...page.vms.map((vm) => vm.vmId));
    pageToken = page.nextPageToken;
    if (pageToken === "") break;
  }
  assert.deepEqual(seen, made);
  await assert.rejects(bed.client().listVms({ tenantId: bed.tenantId, pageToken: "x" }), refused("INVALID_REQUEST"));
});

test("the environment is in no log line", async (t) => {
  const bed = await MetalBed.open(t);
  const { vmId } = await bed.createAndBoot();
  await bed.client().deleteVm({ tenantId: bed.tenantId, vmId });
  assert.ok(bed.logLines.length > 5);
  assert.deepEqual(
    bed.logLines.filter((line) => line.includes("s3cret")),
    [],
  );
});
