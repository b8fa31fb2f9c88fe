import assert from "node:assert/strict";
import { execFileSync } from "node:child_process";
import { readFileSync, statSync, truncateSync, writeFileSync } from "node:fs";
import { dirname, join } from "node:path";
import { after, before, suite, test } from "node:test";
import { setTimeout as delay } from "node:timers/promises";
import { mib } from "@unkey/base";
import { type VmProcess, type VmSpec, vmFiles } from "./hypervisor.ts";
import { openQemuFixture, type QemuFixture, qemuSkipReason } from "./testing/qemu-test-host.ts";
import { untilVm } from "./until.ts";

const skip = qemuSkipReason();

/** What a real guest does with what it was given. */
suite("a guest under QEMU", skip === undefined ? {} : { skip }, () => {
  let fixture: QemuFixture;
  before(async () => {
    fixture = await openQemuFixture();
  });
  after(() => fixture[Symbol.asyncDispose]());

  const patience = (): AbortSignal => AbortSignal.timeout(90_000);

  /** Boots a VM, lends it, and leaves no process behind. */
  async function withBooted(spec: VmSpec, use: (vm: VmProcess, signal: AbortSignal) => Promise<void>): Promise<void> {
    const signal = patience();
    await using vm = await fixture.hypervisor.create(spec, signal);
    try {
      await vm.boot(signal);
      await use(vm, signal);
    } finally {
      await vm.destroy(patience());
    }
  }

  /** Runs a VM to its end and returns all that its app printed. */
  async function outputOf(spec: VmSpec): Promise<Buffer> {
    await withBooted(spec, async (vm, signal) => {
      await untilVm(vm, isOver, signal);
      assert.equal(vm.guest.failed, undefined);
    });
    return readFileSync(vmFiles(spec.dir).appLog);
  }

  test("the app gets its arguments and environment byte by byte", async () => {
    const everyByte = Buffer.from(Array.from({ length: 255 }, (_, index) => index + 1));
    const env: readonly (readonly [string, string | Uint8Array])[] = [
      ["PLAIN", "value"],
      ["with.dot-and space", 'it\'s "quoted" $HOME `id` \\ *'],
      ["LINES", "one\ntwo\n\n"],
      ["-leading", "dash"],
      ["EMPTY", ""],
      ["BYTES", everyByte],
      ["ÜNÏ", "grün"],
      ["HOME", "/elsewhere"],
      ["PATH", "/only"],
    ];
    const files = ["/proc/self/cmdline", "/proc/self/environ"];
    const argv = ["busybox", "cat", ...files, "--", everyByte, "", "-n 'x'", "--", "$(id)"];
    const output = await outputOf(await fixture.newShellSpec("", { argv, env }));
    const expectedArgv = argv.flatMap((argument) => [Buffer.from(argument as string), Buffer.of(0)]);
    const expectedEnv = [
      ["PATH", "/only"] as const,
      ["HOSTNAME", "guest"] as const,
      ...env.filter(([name]) => name !== "PATH"),
    ].flatMap(([name, value]) => [Buffer.from(`${name}=`), Buffer.from(value as string), Buffer.of(0)]);
    const expected = Buffer.concat([...expectedArgv, ...expectedEnv]);
    assert.deepEqual(output.subarray(0, expected.length), expected);
  });

  test("a user other than root sees a container's world and nothing of the init's", async () => {
    const look = [
      "id; grep ^SigIgn /proc/self/status",
      "pwd; stat -c %u:%g . /dev/stdout /proc/self/fd/1",
      "echo home=$HOME host=$HOSTNAME; cat /etc/hostname /etc/hosts /etc/resolv.conf",
      "cat /dev/.unkey/config/app; ls /dev/.unkey; cat /dev/vdc | head -c 1; cat /dev/hvc0; cat /proc/1/environ",
      "echo to-stdout > /dev/stdout; echo to-stderr > /dev/stderr",
      "mount | cut -d' ' -f1,3,5 | sort; cat /proc/sys/net/ipv4/ip_unprivileged_port_start; ulimit -n",
      "touch /dev/shm/a /tmp/b && echo writable; touch /c; stat -Lc %a /tmp /dev/null /dev/ptmx",
      "cat /proc/self/oom_score_adj; umask; ls /dev/.unkey/layers/upper",
      "(true &); (true &); usleep 500000; grep -h '^State:.*Z' /proc/[0-9]*/status; echo orphans reaped",
      "exec ls -l /proc/self/fd", // its own descriptor 3 and no other but stdio
    ].join("\n");
    const app = {
      workingDir: "/made/for it",
      user: { uid: 1234, gid: 2345, supplementaryGids: [20, 3456] },
      env: [["SECRET", "s3cr3t"]] as const,
    };
    const hosts = [{ address: "192.0.2.7", names: ["db", "db.internal"] }];
    const spec = await fixture.newShellSpec(look, app, { hosts });
    const text = (await outputOf(spec)).toString();
    assert.match(text, /^uid=1234 gid=2345 groups=20,2345,3456$/m);
    assert.match(text, /^SigIgn:\t0+$/m);
    assert.match(text, /^\/made\/for it$/m);
    assert.match(text, /^home=\/ host=guest$/m);
    assert.match(text, /^127\.0\.0\.1 localhost$/m);
    assert.match(text, /^192\.0\.2\.7 db db\.internal$/m);
    for (const path of [
      "/dev/.unkey/config/app",
      "/dev/.unkey",
      "/dev/.unkey/layers/upper",
      "/dev/vdc",
      "/dev/hvc0",
      "/proc/1/environ",
    ]) {
      assert.match(text, new RegExp(`${path.replaceAll(".", "\\.")}'?: Permission denied`));
    }
    assert.ok(!text.includes("s3cr3t"));
    assert.match(text, /^to-stdout$/m);
    assert.match(text, /^to-stderr$/m);
    assert.match(text, /^root \/ overlay$/m);
    for (const mount of ["proc /proc proc", "sys /sys sysfs", "devpts /dev/pts devpts", "shm /dev/shm tmpfs"]) {
      assert.match(text, new RegExp(`^${mount}$`, "m"));
    }
    assert.match(text, /^0\n65536\nwritable$/m);
    assert.match(text, /touch: \/c: Permission denied/);
    assert.match(text, /^1777\n666\n666$/m);
    assert.match(text, /^0\n0022$/m);
    assert.match(text, /^orphans reaped$/m);
    assert.ok(!/^State:/m.test(text));
    assert.deepEqual(text.match(/\d+ (?=-> )/g), ["0 ", "1 ", "2 "]);
  });

  test("a shutdown that is asked for while the guest boots is not lost", async () => {
    const spec = await fixture.newShellSpec("trap 'exit 0' TERM; while :; do sleep 1 & wait; done");
    await withBooted(spec, async (vm, signal) => {
      await vm.requestShutdown({ graceMs: 30_000 }, signal);
      await untilVm(vm, isOver, signal);
      assert.equal(vm.guest.stopping, true);
      assert.notEqual(vm.guest.exited, undefined);
      assert.equal(vm.end?.by, "guest");
    });
  });

  test("a root file system may be ext4 as well as EROFS; anything else is a failed boot with its reason", async () => {
    const spec = await fixture.newShellSpec("cat /proc/mounts");
    const ext4 = join(spec.dir, "base.ext4");
    const tree = join(dirname(spec.dir), "tree");
    writeFileSync(ext4, "");
    truncateSync(ext4, 16 * mib);
    execFileSync("mkfs.ext4", ["-q", "-d", tree, ext4], { env: { PATH: "/usr/sbin:/sbin:/usr/bin:/bin" } });
    const output = await outputOf({ ...spec, drives: { ...spec.drives, basePath: ext4 } });
    assert.match(output.toString(), /layers\/base ext4 ro/);
    writeFileSync(ext4, Buffer.alloc(mib, 7));
    await withBooted({ ...spec, drives: { ...spec.drives, basePath: ext4 } }, async (vm, signal) => {
      await untilVm(vm, isOver, signal);
      assert.equal(vm.guest.failed?.step, "base");
      assert.match(vm.guest.failed.reason, /mount.*failed/);
    });
    assert.match(readFileSync(vmFiles(spec.dir).consoleLog, "utf8"), /init: base: mount/);
  });

  test("a paused guest is frozen and goes on where it was", async () => {
    const spec = await fixture.newShellSpec("i=0; while :; do i=$((i+1)); echo $i; usleep 10000; done");
    const { appLog } = vmFiles(spec.dir);
    await withBooted(spec, async (vm, signal) => {
      await untilSize(appLog, 20, signal);
      await vm.pause(signal);
      const frozen = statSync(appLog).size;
      await delay(300);
      assert.equal(statSync(appLog).size, frozen);
      await vm.resume(signal);
      await untilSize(appLog, frozen + 20, signal);
    });
    const numbers = readFileSync(appLog, "utf8").split("\n").slice(0, -1).map(Number);
    assert.deepEqual(
      numbers,
      numbers.map((_, index) => index + 1),
    );
  });

  test("all output arrives before the end does, and what the app left running ends with it", async () => {
    const script =
      "(sleep 1000) & (while :; do sleep 0; done) & for i in 1 2 3; do (true) & done; " +
      "dd if=/dev/zero bs=64k count=64 2>/dev/null | tr '\\0' x; exit 9";
    const spec = await fixture.newShellSpec(script);
    await withBooted(spec, async (vm, signal) => {
      await untilVm(vm, isOver, signal);
      assert.deepEqual(vm.guest.exited, { code: 9 });
      assert.deepEqual(vm.end, { by: "guest", reason: "guest-shutdown" });
    });
    assert.equal(statSync(vmFiles(spec.dir).appLog).size, 4 * mib);
  });

  test("what the app writes is counted, and is there after another boot", async () => {
    const script =
      "[ -f /kept ] && cat /kept; dd if=/dev/zero of=/file bs=1M count=8 2>/dev/null; echo kept > /kept; sync";
    const spec = { ...(await fixture.newShellSpec(script)), vcpuCount: 2 };
    await withBooted(spec, async (vm, signal) => {
      await untilVm(vm, isOver, signal);
      const upper = (await vm.readBlockCounters(signal)).find(({ drive }) => drive === "upper");
      assert.ok(upper !== undefined && upper.writeBytes >= 8n * BigInt(mib), String(upper?.writeBytes));
      assert.ok(upper.writeOperations > 0n);
    });
    assert.equal(readFileSync(vmFiles(spec.dir).appLog, "utf8"), "");
    assert.equal((await outputOf(spec)).toString(), "kept\n");
  });

  test("a guest that floods its control port is ended", async () => {
    const spec = await fixture.newShellSpec("while :; do head -c 100000 /dev/zero; done > /dev/hvc0");
    await withBooted(spec, async (vm, signal) => {
      await untilVm(vm, isOver, signal);
      assert.equal(vm.state, "gone");
      assert.equal(vm.end?.by, "monitor");
    });
  });
});

function isOver(vm: VmProcess): boolean {
  return vm.end !== undefined;
}

async function untilSize(path: string, bytes: number, signal: AbortSignal): Promise<void> {
  while (statSync(path).size < bytes) await delay(20, undefined, { signal });
}
