import assert from "node:assert/strict";
import { test } from "node:test";
import type { Series } from "@unkey/api/metering";
import { newId } from "@unkey/base";
import { imageInParts } from "./support/image-in-parts.ts";
import { eventually, MetalBed, nothing, stateName } from "./support/metal-bed.ts";

type Scenario = (bed: MetalBed, vmId: string) => Promise<unknown>;

const id = (bed: MetalBed, vmId: string) => ({ tenantId: bed.tenantId, vmId });

/** What leads up to a verb, the verb that a kill interrupts, and the states it may come to. */
const scenarios: Record<
  string,
  { readonly before: Scenario; readonly verb: Scenario; readonly ends: readonly string[] }
> = {
  create: {
    before: async () => undefined,
    verb: (bed, vmId) => bed.client().createVm(bed.wish(vmId)),
    ends: ["CREATED"],
  },
  boot: {
    before: (bed, vmId) => bed.client().createVm(bed.wish(vmId)),
    verb: (bed, vmId) => bed.client().bootVm(id(bed, vmId)),
    ends: ["CREATED", "RUNNING"],
  },
  pause: {
    before: (bed, vmId) => bed.createAndBoot(vmId),
    verb: (bed, vmId) => bed.client().pauseVm(id(bed, vmId)),
    ends: ["RUNNING", "PAUSED"],
  },
  shutdown: {
    before: (bed, vmId) => bed.createAndBoot(vmId),
    verb: (bed, vmId) => bed.client().shutdownVm(id(bed, vmId)),
    ends: ["RUNNING", "STOPPED"],
  },
  reboot: {
    before: (bed, vmId) => bed.createAndBoot(vmId),
    verb: (bed, vmId) => bed.client().rebootVm(id(bed, vmId)),
    ends: ["RUNNING"],
  },
  "boot again": {
    before: async (bed, vmId) => {
      await bed.createAndBoot(vmId);
      await bed.client().shutdownVm(id(bed, vmId));
    },
    verb: (bed, vmId) => bed.client().bootVm(id(bed, vmId)),
    ends: ["STOPPED", "RUNNING"],
  },
  "a boot that fails": {
    before: async (bed, vmId) => {
      await bed.client().createVm(bed.wish(vmId));
      bed.machine(vmId).die();
      bed.hypervisor.inject("create", { kind: "fail" });
    },
    verb: (bed, vmId) =>
      bed
        .client()
        .bootVm(id(bed, vmId))
        .catch(() => undefined),
    ends: ["CREATED", "RUNNING", "FAILED"],
  },
  delete: {
    before: (bed, vmId) => bed.createAndBoot(vmId),
    verb: (bed, vmId) => bed.client().deleteVm(id(bed, vmId)),
    ends: ["RUNNING", "DELETED"],
  },
};

for (const [name, { before, verb, ends }] of Object.entries(scenarios)) {
  test(`killed at any point of ${name}, metald takes the VM up again; nothing is lost, doubled or left`, async (t) => {
    const { image, parts } = await imageInParts({ app: Buffer.alloc(4096, "a"), lib: Buffer.alloc(4096, "l") });
    for (let point = 1; ; point++) {
      const drives: string[][] = [];
      const bed = await MetalBed.open(t, {
        guestFor: (spec) => {
          drives.push([spec.drives.basePath, ...spec.drives.basePartPaths]);
          return {};
        },
      });
      bed.assets.contentOf = () => image;
      bed.assets.parts = parts;
      const vmId = newId("vm");
      await before(bed, vmId);
      const dead = bed.killAtPoint(point);
      const finished = verb(bed, vmId).then(
        () => true,
        async (error: unknown) => {
          if (!bed.isDead) throw error;
          await dead;
          return false;
        },
      );
      const survived = (await Promise.race([finished, dead.then(() => false)])) && !bed.isDead;
      const where = bed.points.at(-1) ?? "";
      if (survived) {
        assert.ok(point > 2, `${name} has points to die at`);
        break;
      }
      await bed.restart();
      const vm = await bed
        .client()
        .getVm(id(bed, vmId))
        .catch(() => undefined);
      if (!vm) {
        assert.equal(point, 1, `only a wish that was never recorded may be forgotten, not at "${where}"`);
        continue;
      }
      const state = stateName(vm);
      assert.ok(ends.includes(state), `killed at "${where}" it came to ${state}`);
      const alive = ["RUNNING", "PAUSED"].includes(state) || (state === "CREATED" && name !== "a boot that fails");
      const process = await bed.hypervisor.find(bed.paths(vmId).runDir);
      assert.equal(process !== undefined, alive, `process after "${where}"`);
      assert.equal(bed.run.sampler.size, ["RUNNING", "PAUSED"].includes(state) ? 1 : 0, `meter after "${where}"`);
      const { rootfs } = bed.paths(vmId);
      assert.ok(drives.length > 0, `drives after "${where}"`);
      for (const attached of drives) {
        assert.deepEqual(attached, [rootfs, `${rootfs}.1`, `${rootfs}.2`], `drives after "${where}"`);
      }
      await bed.client().deleteVm(id(bed, vmId));
      assert.deepEqual(await bed.leftovers(), nothing, `after "${where}"`);
      // Every incarnation that began has its end told, and nothing about it is left to tell.
      const incarnations = (list: readonly { readonly series?: Series | undefined }[]) =>
        list.map(({ series }) => series?.incarnation);
      await eventually(async () => {
        const rows = await bed.run.sql.query("SELECT 1 FROM series");
        return rows.length === 0 || undefined;
      }, `everything told after "${where}"`);
      const ended = new Set(incarnations(bed.billaged.stopped));
      assert.deepEqual(
        incarnations(bed.billaged.started).filter((one) => !ended.has(one)),
        [],
      );
      if (state === "RUNNING") assert.ok(ended.has(vm.incarnation), `incarnation ${vm.incarnation} after "${where}"`);
      await bed.stop();
    }
  });
}

test("a VM outlives metald, is adopted, and goes on being sampled from where the clock is", async (t) => {
  const bed = await MetalBed.open(t);
  const { vmId } = await bed.createAndBoot();
  bed.run.sampler.tick();
  await bed.kill();
  bed.counters.add(vmId, { cpuTimeUs: 500_000 });
  await bed.restart();
  assert.equal(stateName(await bed.client().getVm(id(bed, vmId))), "RUNNING");
  bed.run.sampler.tick();
  const frame = await eventually(() => bed.billaged.frames.find((f) => f.hostEpoch === 2n), "a frame of the new epoch");
  assert.deepEqual(frame.cpuTimeUs, [500_000]);
  await bed.client().pauseVm(id(bed, vmId));
  await bed.restart();
  assert.equal(stateName(await bed.client().getVm(id(bed, vmId))), "PAUSED");
});

test("a VM that ended while no metald was there is collected, with its exit and its last counters", async (t) => {
  const bed = await MetalBed.open(t);
  const { vmId } = await bed.createAndBoot();
  await bed.kill();
  bed.counters.add(vmId, { netOutBytes: 1234 });
  bed.machine(vmId).exitApp({ code: 7 });
  await bed.restart();
  const vm = await bed.client().getVm(id(bed, vmId));
  assert.equal(stateName(vm), "STOPPED");
  assert.deepEqual({ ...vm.exit?.outcome }, { case: "code", value: 7 });
  const end = await eventually(() => bed.billaged.stopped[0], "the end is told");
  assert.equal(end.final?.counters?.netOutBytes, 1234n);
});

test("what belongs to no VM is removed at the start", async (t) => {
  const bed = await MetalBed.open(t);
  await bed.cgroups.ensure("vm_unknown");
  await bed.networks.ensure({ slot: 77 } as Parameters<typeof bed.networks.ensure>[0]);
  await bed.restart();
  assert.deepEqual(await bed.leftovers(), nothing);
});
