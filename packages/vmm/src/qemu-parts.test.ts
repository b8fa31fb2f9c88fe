import assert from "node:assert/strict";
import { randomBytes } from "node:crypto";
import { readFileSync, truncateSync } from "node:fs";
import { after, before, suite, test } from "node:test";
import type { VmSpec } from "./hypervisor.ts";
import { vmFiles } from "./hypervisor.ts";
import { openQemuFixture, type QemuFixture, qemuSkipReason } from "./testing/qemu-test-host.ts";
import { untilVm } from "./until.ts";

const skip = qemuSkipReason();

suite("a root file system in parts, under QEMU", skip === undefined ? {} : { skip }, () => {
  let fixture: QemuFixture;
  before(async () => {
    fixture = await openQemuFixture();
  });
  after(() => fixture[Symbol.asyncDispose]());

  const patience = (): AbortSignal => AbortSignal.timeout(90_000);

  test("every byte is where it was, and what is read of the parts counts as read of the base", async () => {
    const content = randomBytes(800 * 1024);
    const drives = await fixture.newBaseInParts(3, { "only/random": content });
    const spec = await fixture.newShellSpec("busybox cat /only/random", { env: [["PATH", "/only"]] });
    const signal = patience();
    await using vm = await fixture.hypervisor.create({ ...spec, drives: { ...spec.drives, ...drives } }, signal);
    try {
      await vm.boot(signal);
      await untilVm(vm, ({ end }) => end !== undefined, signal);
      assert.equal(vm.guest.failed, undefined);
      assert.ok(readFileSync(vmFiles(spec.dir).appLog).equals(content));
      const counters = await vm.readBlockCounters(signal);
      assert.deepEqual(
        counters.map(({ drive }) => drive),
        ["base", "upper", "config"],
      );
      const [base] = counters;
      assert.ok(base !== undefined && base.readBytes > content.length, String(base?.readBytes));
      assert.equal(base.writeBytes, 0n);
    } finally {
      await vm.destroy(patience());
    }
  });

  const refusals: readonly {
    readonly name: string;
    readonly change: (drives: BaseDrives) => BaseDrives;
    readonly reason: RegExp;
  }[] = [
    {
      name: "the last part is missing",
      change: (drives) => ({ ...drives, basePartPaths: drives.basePartPaths.slice(0, -1) }),
      reason: /^the image names 3 parts, and 2 were given$/,
    },
    {
      name: "all parts are missing",
      change: (drives) => ({ ...drives, basePartPaths: [] }),
      reason: /^the image names 3 parts, and 0 were given$/,
    },
    {
      name: "there is one part too many",
      change: (drives) => ({ ...drives, basePartPaths: [...drives.basePartPaths, drives.basePath] }),
      reason: /^the image names 3 parts, and 4 were given$/,
    },
    {
      name: "two parts are in each other's place",
      change: ({ basePath, basePartPaths: [first = "", second = "", third = ""] }) => ({
        basePath,
        basePartPaths: [second, first, third],
      }),
      reason: /^part 1 has 2 blocks, and the image says 1$/,
    },
    {
      name: "a part is cut short",
      change: (drives) => {
        truncateSync(drives.basePartPaths[2] ?? "", 4096);
        return drives;
      },
      reason: /^part 3 has 1 blocks, and the image says \d+$/,
    },
  ];
  for (const { name, change, reason } of refusals) {
    test(`when ${name} there is no app, and the reason is told`, async () => {
      const drives = change(await fixture.newBaseInParts(3));
      const spec = await fixture.newShellSpec("");
      assert.match(await failureOf({ ...spec, drives: { ...spec.drives, ...drives } }), reason);
    });
  }

  test("an image that is not EROFS has no parts", async () => {
    const spec = await fixture.newShellSpec("");
    const drives = { ...spec.drives, basePath: spec.drives.configPath, basePartPaths: [spec.drives.basePath] };
    assert.match(await failureOf({ ...spec, drives }), /^only an EROFS image has parts, and 1 were given$/);
  });

  /** Why the guest says that it could not mount its base. */
  async function failureOf(spec: VmSpec): Promise<string> {
    const signal = patience();
    await using vm = await fixture.hypervisor.create(spec, signal);
    try {
      await vm.boot(signal);
      await untilVm(vm, ({ end }) => end !== undefined, signal);
      assert.equal(vm.guest.failed?.step, "base");
      return vm.guest.failed.reason;
    } finally {
      await vm.destroy(patience());
    }
  }
});

type BaseDrives = Pick<VmSpec["drives"], "basePath" | "basePartPaths">;
