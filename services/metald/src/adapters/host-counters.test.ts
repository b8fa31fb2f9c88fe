import assert from "node:assert/strict";
import { spawn } from "node:child_process";
import { randomBytes } from "node:crypto";
import { once } from "node:events";
import { mkdtemp, rm, truncate, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { test } from "node:test";
import { hostNetworkSkip } from "../../test/support/skip-reasons.ts";
import { LinuxCounters } from "./host-counters.ts";
import { runCommand } from "./run-command.ts";

test("reads both kinds of cpu file, memory and allocated blocks; what is not there is NaN, not 0", async (t) => {
  const dir = await mkdtemp(join(tmpdir(), "metald-counters-"));
  t.after(() => rm(dir, { recursive: true }));
  const path = (name: string) => join(dir, name);
  await writeFile(path("usage"), "7200123456789\n");
  await writeFile(path("stat"), "usage_usec 7200123456\nuser_usec 1\n");
  await writeFile(path("memory"), "262144\n");
  await writeFile(path("layer"), Buffer.alloc(8192, 1));
  await truncate(path("layer"), 1_000_000_000);
  for (const [cpu, format] of [
    [path("usage"), "cpuacct.usage"],
    [path("stat"), "cpu.stat"],
  ] as const) {
    const counters = LinuxCounters.ofProcess({
      cgroup: { cpu: { path: cpu, format }, memory: path("memory") },
      layerPath: path("layer"),
    });
    assert.deepEqual(counters.read(), {
      cpuTimeUs: 7_200_123_456,
      memoryResidentBytes: 262_144,
      diskAllocatedBytes: 8192,
      netInBytes: Number.NaN,
      netOutBytes: Number.NaN,
    });
    counters.close();
    counters.close();
  }
  const none = LinuxCounters.ofProcess({ pid: 0x3fff_ffff, layerPath: path("missing") });
  assert.ok(Object.values(none.read()).every(Number.isNaN));
  none.close();
});

test("keeps reading a tap after the last process in its netns has ended", { skip: hostNetworkSkip() }, async (t) => {
  const netns = `unkeytest-${randomBytes(3).toString("hex")}`;
  t.after(() => runCommand("ip", ["netns", "delete", netns]));
  // A link named like the tap, with a peer that answers nothing: what is sent out of it is counted as transmitted.
  await runCommand("ip", ["-batch", "-"], { input: `netns add ${netns}\n` });
  await runCommand("ip", ["-netns", netns, "-batch", "-"], {
    input: `link add tap0 type veth peer name peer0
link set tap0 addrgenmode none
link set peer0 addrgenmode none
address add 10.0.0.1/24 dev tap0
link set tap0 up
link set peer0 up
neigh add 10.0.0.2 lladdr 02:00:00:00:00:02 dev tap0
`,
  });
  const child = spawn("nsenter", [`--net=/run/netns/${netns}`, "sh", "-c", "echo in; exec sleep 30"], {
    stdio: ["ignore", "pipe", "ignore"],
  });
  await once(child.stdout, "data");
  const counters = LinuxCounters.ofProcess({ pid: child.pid, layerPath: "/nonexistent" });
  t.after(() => counters.close());
  child.kill("SIGKILL");
  await once(child, "exit");
  const before = counters.read();
  const send = `const s = require("dgram").createSocket("udp4"); s.send(Buffer.alloc(1000), 9, "10.0.0.2", () => s.close())`;
  await runCommand("nsenter", [`--net=/run/netns/${netns}`, process.execPath, "-e", send]);
  const after = counters.read();
  assert.equal(after.netInBytes - before.netInBytes, 1000 + 8 + 20 + 14);
  assert.equal(after.netOutBytes, before.netOutBytes);
  const remains = await LinuxCounters.ofRemains({ layerPath: "/nonexistent" }, netns);
  assert.equal(remains.read().netInBytes, after.netInBytes);
  assert.equal(remains.read().netOutBytes, after.netOutBytes);
  remains.close();
  const nothing = await LinuxCounters.ofRemains({ layerPath: "/nonexistent" }, `${netns}-gone`);
  assert.ok(Number.isNaN(nothing.read().netInBytes));
});
