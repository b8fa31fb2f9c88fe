import assert from "node:assert/strict";
import { spawn } from "node:child_process";
import { randomBytes } from "node:crypto";
import { once } from "node:events";
import { mkdtemp, readdir, rm } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { test } from "node:test";
import { newId } from "@unkey/base";
import { LinuxCgroups } from "@unkey/cgroup";
import { createLogger } from "@unkey/daemon";
import { openSqlite } from "@unkey/sql";
import { MemoryHypervisor } from "@unkey/vmm";
import { hostNetworkSkip } from "../test/support/skip-reasons.ts";
import { migrations } from "./adapters/schema.ts";
import { SqlVmStore } from "./adapters/sql-vm-store.ts";
import { VmDisks } from "./adapters/vm-disks.ts";
import { slotIdentity } from "./domain/slot-identity.ts";
import { openNetworks } from "./open-instance.ts";
import { reconcileHost } from "./reconcile.ts";

test("what no VM owns is removed; what a process lives in is left alone, reported, and its address is not given out", {
  skip: hostNetworkSkip(),
}, async (t) => {
  const id = randomBytes(3).toString("hex");
  const log = createLogger({ write: () => undefined });
  const dir = await mkdtemp(join(tmpdir(), "metald-reconcile-"));
  await using stack = new AsyncDisposableStack();
  stack.defer(() => rm(dir, { recursive: true }));
  const store = new SqlVmStore(stack.use(await openSqlite({ path: ":memory:", migrations })));
  const opened = stack.use(await openNetworks({ instanceId: id, configured: undefined, resolvers: [], store, log }));
  const { networks } = opened;
  const instance = { id, subnet: opened.subnet, uidBase: 1_879_048_192 };
  const cgroups = stack.adopt(await LinuxCgroups.open(`unkey-${id}`), (groups) => groups.close());
  const disks = new VmDisks();
  const vmsDir = join(dir, "vms");
  const [orphan, inhabited] = [slotIdentity(instance, 2), slotIdentity(instance, 3)];
  await networks.ensure(orphan);
  await networks.ensure(inhabited);
  await cgroups.ensure("vm_orphan", { cpuCount: 1, memoryBytes: 2 ** 28, maxProcesses: 10 });
  await disks.ensureDir(join(vmsDir, newId("vm")), 0o711);
  const child = spawn("nsenter", [`--net=/run/netns/${inhabited.netns}`, "sh", "-c", "echo in; exec sleep 60"], {
    stdio: ["ignore", "pipe", "ignore"],
  });
  t.after(() => child.kill("SIGKILL"));
  await once(child.stdout, "data");

  const deps = { store, networks, cgroups, disks, hypervisor: new MemoryHypervisor(), instance, vmsDir, log };
  const quarantined = await reconcileHost(deps);
  assert.deepEqual(quarantined, [`netns ${inhabited.netns} with processes ${child.pid}`]);
  assert.deepEqual(await networks.present(), [3]);
  assert.deepEqual(await cgroups.present(), []);
  assert.deepEqual(await readdir(vmsDir), []);
  const wish = {
    id: newId("vm"),
    tenantId: newId("tenant"),
    appId: "app_0",
    deploymentId: "",
    specHash: "",
    spec: new Uint8Array(),
    vcpuCount: 1,
    memoryBytes: 2 ** 26,
    diskBytes: 2 ** 24,
    rootfsAssetId: "",
    createdAtMs: Date.now(),
    reservationId: "",
  };
  const capacity = { vcpuCount: 9, maxVcpusPerVm: 9, memoryBytes: 2 ** 40, diskBytes: 2 ** 40 };
  const { vm } = await store.admit(wish, capacity, 100);
  assert.equal(vm.slot, 4);

  const ended = once(child, "exit");
  child.kill("SIGKILL");
  await ended;
  await reconcileHost(deps);
  assert.deepEqual(await networks.present(), []);
});
