import assert from "node:assert/strict";
import { existsSync, readdirSync, readFileSync } from "node:fs";
import { get } from "node:http";
import { join } from "node:path";
import { test } from "node:test";
import { create } from "@bufbuild/protobuf";
import { ProcessConfigSchema, ResourcesSchema } from "@unkey/api/common";
import { LogSource, VmSpecSchema, VmState } from "@unkey/api/metal";
import { mib, newId, ServiceError } from "@unkey/base";
import { runCommand } from "../src/adapters/run-command.ts";
import { instanceIdOf } from "../src/open-instance.ts";
import { DaemonBed, realGuestSkip } from "./support/daemon-bed.ts";
import { eventually } from "./support/metal-bed.ts";

const skip = realGuestSkip();

/** Serves its environment, and counts its own end. */
const server = `
mkdir -p /www && echo "hello $NAME" > /www/index.html
trap 'echo stopping; exit 7' TERM
/bin/busybox httpd -f -p 8080 -h /www &
echo listening
while :; do /bin/busybox sleep 1 & wait $!; done
`;

function fetchText(host: string, path = "/"): Promise<string> {
  return new Promise((resolve, reject) => {
    get({ host, port: 8080, path, timeout: 5_000, agent: false }, (response) => {
      let text = "";
      response.setEncoding("utf8").on("data", (chunk: string) => (text += chunk));
      response.on("end", () => resolve(text));
    })
      .on("error", reject)
      .on("timeout", () => reject(new Error("timeout")));
  });
}

test("a real guest: served, paused, resumed, outliving metald, stopped with its exit, billed as the host counted, deleted without a trace", {
  skip,
  timeout: 280_000,
}, async (t) => {
  const bed = await DaemonBed.open(t);
  const vmId = newId("vm");
  const id = { tenantId: bed.tenantId, vmId };
  const created = await bed.call("gatewayd", (client, options) =>
    client.createVm(
      {
        ...id,
        appId: "app_hello",
        deploymentId: "dep_1",
        spec: create(VmSpecSchema, {
          resources: create(ResourcesSchema, {
            vcpuCount: 1,
            memoryBytes: BigInt(256 * mib),
            diskBytes: BigInt(256 * mib),
          }),
          rootfsAssetId: bed.rootfsAssetId,
          process: create(ProcessConfigSchema, {
            argv: ["/bin/sh", "-c", server],
            env: [{ name: "NAME", value: 'it\'s a "guest"' }],
          }),
        }),
      },
      options,
    ),
  );
  assert.equal(created.state, VmState.CREATED);
  const booted = await bed.call("gatewayd", (client, options) => client.bootVm(id, options));
  assert.equal(booted.state, VmState.RUNNING, bed.logLines.slice(-20).join(""));
  const page = await eventually(() => fetchText(booted.ipAddress).catch(() => undefined), "the app answers");
  assert.equal(page, 'hello it\'s a "guest"\n');

  const paused = await bed.call("gatewayd", (client, options) => client.pauseVm(id, options));
  assert.equal(paused.state, VmState.PAUSED);
  await bed.call("gatewayd", (client, options) => client.resumeVm(id, options));
  assert.equal(await fetchText(booted.ipAddress), page);

  // metald is killed and comes back; the VM and its network do not notice.
  await bed.stop("SIGKILL");
  assert.equal(await fetchText(booted.ipAddress), page);
  await bed.start();
  await eventually(async () => {
    const vm = await bed.call("gatewayd", (client, options) => client.getVm(id, options));
    return vm.state === VmState.RUNNING || undefined;
  }, "the VM is adopted");
  await eventually(() => bed.billaged.frames.some((frame) => frame.hostEpoch === 2n) || undefined, "samples go on");

  const stopped = await bed.call("gatewayd", (client, options) => client.shutdownVm(id, options));
  assert.equal(stopped.state, VmState.STOPPED);
  assert.deepEqual({ ...stopped.exit?.outcome }, { case: "code", value: 7 }, bed.logLines.slice(-20).join(""));

  const output = await bed.call("gatewayd", async (client, options) => {
    let text = "";
    for await (const chunk of client.streamLogs({ ...id, source: LogSource.APP }, options)) {
      text += Buffer.from(chunk.data).toString();
    }
    return text;
  });
  assert.equal(output.replaceAll("\r", ""), "listening\nstopping\n");

  // The netns and cgroup are still there: what was billed is what the host counts.
  const instance = await instanceIdOf(join(bed.dir, "data"));
  const end = await eventually(() => bed.billaged.stopped[0], "the end is told");
  const netns =
    readdirSync("/run/netns").find((name) => name.startsWith(`unkey-${instance}-`)) ?? assert.fail("no netns");
  const [link] = JSON.parse(
    await runCommand("ip", ["-netns", netns, "-statistics", "-json", "link", "show", "tap0"]),
  ) as {
    stats64: { rx: { bytes: number }; tx: { bytes: number } };
  }[];
  const counters = end.final?.counters;
  assert.equal(Number(counters?.netOutBytes), link?.stats64.rx.bytes);
  assert.equal(Number(counters?.netInBytes), link?.stats64.tx.bytes);
  assert.ok(Number(counters?.netOutBytes) > 500);
  const usage = ["/sys/fs/cgroup/cpuacct", "/sys/fs/cgroup"].flatMap((root) => {
    const group = `${root}/unkey-${instance}/${vmId}`;
    if (existsSync(`${group}/cpuacct.usage`))
      return [Math.floor(Number(readFileSync(`${group}/cpuacct.usage`, "utf8")) / 1000)];
    const stat = existsSync(`${group}/cpu.stat`) ? readFileSync(`${group}/cpu.stat`, "utf8") : "";
    return Array.from(stat.matchAll(/^usage_usec (\d+)/gm), (match) => Number(match[1]));
  });
  assert.deepEqual([Number(counters?.cpuTimeUs)], usage);
  assert.ok(Number(counters?.diskReadBytes) > 100_000);
  assert.ok(Number(counters?.diskWriteBytes) > 0);
  assert.equal(end.baseline?.seq, 0n);
  assert.ok(bed.billaged.frames.length > 20);

  const host = await bed.call("operator", (client, options) => client.getHost({}, options));
  const layers = new Map(host.layers.map((layer) => [layer.name, layer.active]));
  assert.equal(layers.get("netns"), true);
  assert.equal(layers.get("chroot"), false);
  assert.equal(layers.get("hardware-virtualization"), host.acceleration === "kvm");
  t.diagnostic(`${host.hypervisor} ${host.acceleration}: ${host.accelerationReason}`);

  // A later start finds the root filesystem and its parts where they were, and needs nobody's word for them.
  bed.assets.failure = new ServiceError("DEPENDENCY_UNAVAILABLE", "assetmanagerd is away");
  const again = await bed.call("gatewayd", (client, options) => client.bootVm(id, options));
  assert.equal(
    await eventually(() => fetchText(again.ipAddress).catch(() => undefined), "the app answers again"),
    page,
  );
  bed.assets.failure = undefined;

  await bed.call("gatewayd", (client, options) => client.deleteVm(id, options));
  const traces = [
    ...readdirSync("/run/netns").filter((name) => name.includes(instance)),
    ...readdirSync("/sys/class/net").filter((name) => name.includes(instance)),
    ...readdirSync(join(bed.dir, "data", "vms")),
    ...(await runCommand("ip", ["route"])).split("\n").filter((line) => line.includes(instance)),
  ];
  assert.deepEqual(traces, []);
  await bed.stop();
  assert.doesNotMatch(await runCommand("nft", ["list", "ruleset"]), new RegExp(instance));
  const groups = readdirSync("/sys/fs/cgroup").flatMap((name) => [`${name}/unkey-${instance}`]);
  assert.deepEqual(
    groups.filter((group) => existsSync(`/sys/fs/cgroup/${group}`)),
    [],
  );
  assert.equal(existsSync(`/sys/fs/cgroup/unkey-${instance}`), false);
  for (const line of bed.logLines.filter((text) => text.includes('"step done"'))) {
    const { step, tookMs } = JSON.parse(line) as { step: string; tookMs: number };
    t.diagnostic(`${step}: ${tookMs} ms`);
  }
});
