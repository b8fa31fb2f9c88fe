import assert from "node:assert/strict";
import { readFileSync } from "node:fs";
import { after, before, suite, test } from "node:test";
import { setTimeout as delay } from "node:timers/promises";
import { isServiceError } from "@unkey/base";
import { type Hypervisor, type VmEvent, type VmProcess, type VmSpec, vmFiles } from "./hypervisor.ts";
import { untilVm } from "./until.ts";

/** What the app of a VM under test does; each fixture arranges it in its own way. One that runs prints "up" when it is ready. */
export type AppBehaviour =
  | { readonly kind: "runs"; readonly onStop: "exits 0" | "ignores it" }
  | { readonly kind: "exits"; readonly code: number }
  | { readonly kind: "dies"; readonly signal: number }
  | { readonly kind: "does not exist" };

export interface HypervisorFixture extends AsyncDisposable {
  readonly hypervisor: Hypervisor;
  /** A spec in a folder of its own, ready to be created. */
  newSpec(app: AppBehaviour): Promise<VmSpec>;
}

const runs: AppBehaviour = { kind: "runs", onStop: "exits 0" };
const deadlineMs = 90_000;

/** What every hypervisor promises behind the port, in tests. `skip` says why they cannot run here. */
export function hypervisorContract(
  name: string,
  skip: string | undefined,
  open: () => Promise<HypervisorFixture>,
): void {
  suite(`${name} keeps the hypervisor contract`, skip === undefined ? {} : { skip }, () => {
    let fixture: HypervisorFixture;
    before(async () => {
      fixture = await open();
    });
    after(() => fixture[Symbol.asyncDispose]());

    /** Creates a VM, lends it, and leaves nothing of it behind. */
    async function withVm(
      app: AppBehaviour,
      use: (vm: VmProcess, signal: AbortSignal) => Promise<void>,
    ): Promise<void> {
      const signal = AbortSignal.timeout(deadlineMs);
      await using vm = await fixture.hypervisor.create(await fixture.newSpec(app), signal);
      try {
        await use(vm, signal);
      } finally {
        await vm.destroy(AbortSignal.timeout(deadlineMs));
      }
    }

    test("a created VM does not run, a booted one does, and its app is reported as started", async () => {
      await withVm(runs, async (vm, signal) => {
        assert.equal(vm.state, "created");
        assert.deepEqual(vm.guest, {});
        assert.equal(vm.end, undefined);
        await vm.boot(signal);
        assert.equal(vm.state, "running");
        await untilVm(vm, isStarted, signal);
        assert.equal(vm.state, "running");
        await untilUp(vm, signal);
      });
    });

    test("the app's exit code is reported, the guest ends by itself, and its counters can still be read", async () => {
      await withVm({ kind: "exits", code: 143 }, async (vm, signal) => {
        const events: VmEvent[] = [];
        vm.subscribe((event) => events.push(event));
        await vm.boot(signal);
        await untilVm(vm, isOver, signal);
        assert.equal(vm.state, "ended");
        assert.deepEqual(vm.guest.exited, { code: 143 });
        assert.deepEqual(vm.end, { by: "guest", reason: "guest-shutdown" });
        const states = events.flatMap((event) => (event.type === "state" ? [event.state] : []));
        assert.deepEqual(states, ["running", "ended"]);
        const counters = await vm.readBlockCounters(signal);
        assert.deepEqual(counters.map(({ drive }) => drive).sort(), ["base", "config", "upper"]);
        const [base, upper] = ["base", "upper"].map((drive) => counters.find((each) => each.drive === drive)!);
        assert.ok(base!.readBytes > 0n && base!.writeBytes === 0n);
        assert.ok(upper!.writeBytes > 0n);
      });
    });

    test("an end by a signal is not an exit code", async () => {
      await withVm({ kind: "dies", signal: 15 }, async (vm, signal) => {
        await vm.boot(signal);
        await untilVm(vm, isOver, signal);
        assert.deepEqual(vm.guest.exited, { signal: 15 });
      });
    });

    test("a guest that cannot get to its app says why and powers off", async () => {
      await withVm({ kind: "does not exist" }, async (vm, signal) => {
        await vm.boot(signal);
        await untilVm(vm, isOver, signal);
        assert.equal(vm.guest.failed?.step, "app");
        assert.match(vm.guest.failed.reason, /nonesuch/);
        assert.equal(vm.guest.exited, undefined);
      });
    });

    test("pause and resume move between running and paused, and only then", async () => {
      await withVm(runs, async (vm, signal) => {
        await refuses(vm.pause(signal));
        await refuses(vm.requestShutdown({ graceMs: 0 }, signal));
        await vm.boot(signal);
        await refuses(vm.boot(signal));
        await refuses(vm.resume(signal));
        await vm.pause(signal);
        assert.equal(vm.state, "paused");
        await refuses(vm.pause(signal));
        await refuses(vm.requestShutdown({ graceMs: 0 }, signal));
        assert.equal((await vm.readBlockCounters(signal)).length, 3);
        await vm.resume(signal);
        assert.equal(vm.state, "running");
        await untilVm(vm, isStarted, signal);
      });
    });

    test("a shutdown reaches the app as its stop signal", async () => {
      await withVm(runs, async (vm, signal) => {
        await vm.boot(signal);
        await untilUp(vm, signal);
        await vm.requestShutdown({ graceMs: 60_000 }, signal);
        await untilVm(vm, isOver, signal);
        assert.equal(vm.state, "ended");
        assert.equal(vm.guest.stopping, true);
        assert.deepEqual(vm.guest.exited, { code: 0 });
      });
    });

    test("an app that ignores its stop signal is killed after the grace time", async () => {
      await withVm({ kind: "runs", onStop: "ignores it" }, async (vm, signal) => {
        await vm.boot(signal);
        await untilUp(vm, signal);
        await vm.requestShutdown({ graceMs: 100 }, signal);
        await untilVm(vm, isOver, signal);
        assert.deepEqual(vm.guest.exited, { signal: 9 });
      });
    });

    test("a VM whose owner let go runs on and can be adopted from its record, also when it is gone", async () => {
      const signal = AbortSignal.timeout(deadlineMs);
      const { hypervisor } = fixture;
      const spec = await fixture.newSpec(runs);
      const first = await hypervisor.create(spec, signal);
      const { record } = first;
      assert.deepEqual(await hypervisor.find(spec.dir), record);
      await first.boot(signal);
      await untilUp(first, signal);
      const { guest } = first;
      await first[Symbol.asyncDispose]();

      await using second = await hypervisor.attach(JSON.parse(JSON.stringify(record)), signal);
      assert.equal(second.state, "running");
      assert.deepEqual(second.guest, guest);
      assert.deepEqual(second.record, record);
      await second.requestShutdown({ graceMs: 60_000 }, signal);
      await untilVm(second, isOver, signal);
      await second[Symbol.asyncDispose]();

      await using third = await hypervisor.attach(record, signal);
      assert.equal(third.state, "ended");
      assert.deepEqual(third.guest.exited, { code: 0 });
      assert.equal((await third.readBlockCounters(signal)).length, 3);
      await third.destroy(signal);
      assert.equal(await hypervisor.find(spec.dir), undefined);

      await using fourth = await hypervisor.attach(record, signal);
      assert.equal(fourth.state, "gone");
      assert.deepEqual(fourth.guest.exited, { code: 0 });
      assert.equal(fourth.end?.by, "guest");
      await fourth.destroy(signal);
    });

    test("destroy ends a running guest at once, may be repeated, and every verb refuses after it", async () => {
      const signal = AbortSignal.timeout(deadlineMs);
      await using vm = await fixture.hypervisor.create(await fixture.newSpec(runs), signal);
      await vm.boot(signal);
      await vm.destroy(signal);
      await vm.destroy(signal);
      assert.equal(vm.state, "gone");
      assert.equal(vm.end?.by, "monitor");
      for (const verb of [
        vm.boot(signal),
        vm.pause(signal),
        vm.resume(signal),
        vm.requestShutdown({ graceMs: 0 }, signal),
        vm.readBlockCounters(signal),
      ]) {
        await assert.rejects(verb, (error) => isServiceError(error, "VM_GONE"));
      }
    });

    test("a folder holds one VM at a time, and a later one knows nothing of the earlier", async () => {
      const signal = AbortSignal.timeout(deadlineMs);
      const spec = await fixture.newSpec({ kind: "exits", code: 0 });
      await using vm = await fixture.hypervisor.create(spec, signal);
      await assert.rejects(fixture.hypervisor.create(spec, signal), (error) =>
        isServiceError(error, "VM_STATE_CONFLICT"),
      );
      await vm.boot(signal);
      await untilVm(vm, isOver, signal);
      await vm.destroy(signal);
      await using next = await fixture.hypervisor.create(spec, signal);
      assert.deepEqual(next.guest, {});
      assert.equal(next.state, "created");
      await next.destroy(signal);
    });

    test("an aborted signal stops a verb before it does anything", async () => {
      await withVm(runs, async (vm) => {
        const reason = new Error("withdrawn");
        await assert.rejects(vm.boot(AbortSignal.abort(reason)), (error) => error === reason);
        assert.equal(vm.state, "created");
      });
    });

    test("a spec that no hypervisor could run is refused, naming the part", async () => {
      const signal = AbortSignal.timeout(deadlineMs);
      const spec = await fixture.newSpec(runs);
      const wrong: readonly (readonly [Partial<VmSpec>, RegExp])[] = [
        [{ name: "a b" }, /^name/],
        [{ vcpuCount: 0 }, /^vcpuCount/],
        [{ memoryBytes: 1_000_000 }, /^memoryBytes/],
        [{ dir: "relative" }, /^dir/],
        [{ dir: `${spec.dir}/missing` }, /^dir/],
        [{ kernelPath: "/a,b" }, /^kernelPath/],
        [{ drives: { ...spec.drives, basePartPaths: ["/part", "/a,b"] } }, /^basePartPaths\[1\]/],
        [
          { drives: { ...spec.drives, basePartPaths: Array<string>(17).fill("/part") } },
          /^basePartPaths: a VM has room for 16 parts of its root filesystem, not 17/,
        ],
        [{ network: { tapName: "tap0,script=/x", macAddress: "02:00:00:00:00:01" } }, /tapName/],
        [{ network: { tapName: "tap0", macAddress: "00:00:00:00:00:01" } }, /macAddress/],
        [{ launch: { netns: "-exec/" } }, /netns/],
        [{ launch: { cgroupProcsPaths: ["/etc/passwd"] } }, /cgroup/],
        [{ launch: { user: { uid: -1, gid: 0 } } }, /user/],
      ];
      for (const [change, field] of wrong) {
        await assert.rejects(fixture.hypervisor.create({ ...spec, ...change }, signal), (error) => {
          assert.ok(isServiceError(error, "VM_SPEC_INVALID"), String(error));
          assert.match(error.message, field);
          return true;
        });
      }
      assert.equal(await fixture.hypervisor.find(spec.dir), undefined);
    });
  });
}

/** Waits for the app's first words in its log. */
async function untilUp(vm: VmProcess, signal: AbortSignal): Promise<void> {
  await untilVm(vm, isStarted, signal);
  while (!readFileSync(vmFiles(vm.record.dir).appLog, "utf8").includes("up\n")) await delay(20, undefined, { signal });
}

function isStarted(vm: VmProcess): boolean {
  return vm.guest.startedAtUptimeSeconds !== undefined || isOver(vm);
}

function isOver(vm: VmProcess): boolean {
  return vm.end !== undefined;
}

async function refuses(verb: Promise<unknown>): Promise<void> {
  await assert.rejects(verb, (error) => isServiceError(error, "VM_STATE_CONFLICT"));
}
