import assert from "node:assert/strict";
import { execFileSync } from "node:child_process";
import { chmodSync, chownSync, existsSync, mkdirSync, readdirSync, readFileSync, rmdirSync, statSync } from "node:fs";
import { dirname, join } from "node:path";
import { after, before, suite, test } from "node:test";
import { setTimeout as delay } from "node:timers/promises";
import { isServiceError } from "@unkey/base";
import type { VmSpec } from "./hypervisor.ts";
import { QemuHypervisor } from "./qemu-hypervisor.ts";
import { openQemuFixture, type QemuFixture, qemuSkipReason } from "./testing/qemu-test-host.ts";
import { untilVm } from "./until.ts";

const skip = qemuSkipReason();
const notRoot = process.getuid?.() === 0 ? undefined : "needs root: network namespaces, cgroups and other users";
const uid = 64_321;

suite("launching QEMU", skip === undefined ? {} : { skip }, () => {
  let fixture: QemuFixture;
  before(async () => {
    fixture = await openQemuFixture();
  });
  after(() => fixture[Symbol.asyncDispose]());

  const patience = (): AbortSignal => AbortSignal.timeout(90_000);

  test("the probe ends in an accelerator, and says why it is not KVM", async () => {
    const spec = await fixture.newShellSpec("");
    const before = readdirSync(spec.dir);
    const result = await fixture.hypervisor.probe(spec, patience());
    assert.match(result.hypervisorVersion, /^\d+\.\d+/);
    if (result.accelerator === "kvm") assert.equal(result.fallbackReason, undefined);
    else assert.match(result.fallbackReason ?? "", /KVM|kvm/);
    assert.deepEqual(readdirSync(spec.dir), before);
  });

  test("a host without QEMU is told so", async () => {
    const spec = await fixture.newShellSpec("");
    const missing = new QemuHypervisor({ program: "/nonexistent/qemu" });
    await assert.rejects(missing.probe(spec, patience()), (error) => isServiceError(error, "HYPERVISOR_UNAVAILABLE"));
    await assert.rejects(missing.create(spec, patience()), (error) => isServiceError(error, "VM_LAUNCH_FAILED"));
  });

  test("a monitor that cannot start says why and leaves no process", async () => {
    const spec = await fixture.newShellSpec("");
    const broken = { ...spec, drives: { ...spec.drives, basePath: join(spec.dir, "missing.erofs") } };
    await assert.rejects(fixture.hypervisor.create(broken, patience()), (error) => {
      assert.ok(isServiceError(error, "VM_LAUNCH_FAILED"));
      assert.match(error.message, /missing\.erofs.*No such file/);
      return true;
    });
    assert.equal(await fixture.hypervisor.find(spec.dir), undefined);
  });

  test("a create that is given up leaves no process", async () => {
    const spec = await fixture.newShellSpec("");
    const reason = new Error("withdrawn");
    const giveUp = new AbortController();
    const created = fixture.hypervisor.create(spec, giveUp.signal);
    setImmediate(() => giveUp.abort(reason));
    await assert.rejects(created, (error) => error === reason);
    assert.equal(await fixture.hypervisor.find(spec.dir), undefined);
  });

  test("a folder too deep for a socket is refused with the numbers", async () => {
    const spec = await fixture.newShellSpec("");
    const dir = `${spec.dir}/${"d".repeat(90)}`;
    mkdirSync(dir);
    await assert.rejects(fixture.hypervisor.create({ ...spec, dir }, patience()), (error) => {
      assert.ok(isServiceError(error, "VM_SPEC_INVALID"));
      assert.match(error.message, /needs 1\d\d bytes and a socket's path may have 107/);
      return true;
    });
  });

  test(
    "a monitor runs as its user, in its network namespace and cgroups, without rights, and its guest is on the network",
    notRoot === undefined ? {} : { skip: notRoot },
    async () => {
      await using host = new HostNetwork(`vmm-test-${process.pid}`);
      const most = await fixture.newBaseInParts(16); // with them and the network there are all devices that a VM can have
      const shell = await fixture.newShellSpec(
        "mkdir /tmp/www; echo hello > /tmp/www/index.html; exec httpd -f -p 80 -h /tmp/www",
        { user: { uid: 1000, gid: 1000 } },
        { network: { addresses: ["192.0.2.2/32", "fd00:0:0:1::2/64"], gateways: ["192.0.2.1"], dnsServers: [] } },
      );
      const spec: VmSpec = {
        ...shell,
        drives: { ...shell.drives, ...most },
        network: { tapName: host.tap, macAddress: "02:00:00:00:00:02" },
        launch: { netns: host.netns, cgroupProcsPaths: host.cgroupProcsPaths, user: { uid, gid: uid } },
      };
      chownSync(spec.drives.upperPath, uid, uid);
      chownSync(spec.drives.configPath, uid, uid);
      const root = dirname(spec.dir);
      chmodSync(root, 0o711);
      const signal = patience();
      await using vm = await fixture.hypervisor.create(spec, signal);
      try {
        const { pid } = vm.record;
        const status = readFileSync(`/proc/${pid}/status`, "utf8");
        assert.match(status, new RegExp(`^Uid:\t${uid}\t${uid}\t${uid}\t${uid}$`, "m"));
        assert.match(status, new RegExp(`^Gid:\t${uid}\t${uid}\t${uid}\t${uid}$`, "m"));
        assert.match(status, /^Groups:\t *$/m);
        for (const set of ["Inh", "Prm", "Eff", "Bnd", "Amb"])
          assert.match(status, new RegExp(`^Cap${set}:\t0{16}$`, "m"));
        assert.match(status, /^NoNewPrivs:\t1$/m);
        assert.match(status, /^Seccomp:\t2$/m);
        assert.equal(statSync(`/proc/${pid}/ns/net`).ino, statSync(`/run/netns/${host.netns}`).ino);
        for (const path of host.cgroupProcsPaths)
          assert.ok(readFileSync(path, "utf8").split("\n").includes(String(pid)));
        assert.match(readFileSync(`/proc/${pid}/limits`, "utf8"), /^Max core file size +0 +0/m);
        assert.equal(readFileSync(`/proc/${pid}/environ`, "latin1").includes("UNKEY"), false);
        await vm.boot(signal);
        await untilVm(vm, ({ guest, end }) => guest.startedAtUptimeSeconds !== undefined || end !== undefined, signal);
        assert.equal(vm.end, undefined);
        assert.equal(await host.fetch("http://192.0.2.2/index.html", signal), "hello\n");
        assert.equal(await host.fetch("http://[fd00:0:0:1::2]/index.html", signal), "hello\n");
      } finally {
        await vm.destroy(patience());
      }
    },
  );
});

/** A network namespace with one persistent tap, and cgroups, all gone afterwards. */
class HostNetwork implements AsyncDisposable {
  readonly netns: string;
  readonly tap = "tap0";
  readonly cgroupProcsPaths: readonly string[];

  constructor(name: string) {
    this.netns = name;
    const hierarchies = ["/sys/fs/cgroup", "/sys/fs/cgroup/unified", "/sys/fs/cgroup/cpuacct", "/sys/fs/cgroup/memory"];
    const dirs = hierarchies
      .filter((hierarchy) => existsSync(`${hierarchy}/cgroup.procs`))
      .map((hierarchy) => `${hierarchy}/${name}`);
    for (const dir of dirs) mkdirSync(dir);
    this.cgroupProcsPaths = dirs.map((dir) => `${dir}/cgroup.procs`);
    execFileSync("ip", ["netns", "add", name]);
    this.#ip("tuntap", "add", "dev", this.tap, "mode", "tap", "user", String(uid));
    this.#ip("address", "add", "192.0.2.1/24", "dev", this.tap);
    this.#ip("address", "add", "fd00:0:0:1::1/64", "dev", this.tap, "nodad");
    this.#ip("link", "set", this.tap, "up");
  }

  /** Asks from inside the namespace until there is an answer. */
  async fetch(url: string, signal: AbortSignal): Promise<string> {
    for (;;) {
      signal.throwIfAborted();
      try {
        const ask = `process.stdout.write(await (await fetch(${JSON.stringify(url)})).text())`;
        const args = ["netns", "exec", this.netns, process.execPath, "--input-type=module", "-e", ask];
        return execFileSync("ip", args, { encoding: "utf8", stdio: ["ignore", "pipe", "ignore"], timeout: 5000 });
      } catch {
        await delay(100);
      }
    }
  }

  async [Symbol.asyncDispose](): Promise<void> {
    execFileSync("ip", ["netns", "delete", this.netns]);
    for (const path of this.cgroupProcsPaths) await removeCgroup(dirname(path));
  }

  #ip(...args: string[]): void {
    execFileSync("ip", ["-n", this.netns, ...args]);
  }
}

/** The kernel lets go of a process's cgroup a moment after the process is gone. */
async function removeCgroup(dir: string): Promise<void> {
  for (let attempt = 0; ; attempt++) {
    try {
      rmdirSync(dir);
      return;
    } catch (error) {
      if ((error as NodeJS.ErrnoException).code !== "EBUSY" || attempt === 100) throw error;
      await delay(20);
    }
  }
}
