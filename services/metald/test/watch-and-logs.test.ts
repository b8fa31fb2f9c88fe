import assert from "node:assert/strict";
import { appendFileSync, readdirSync, rmSync, statSync, symlinkSync, truncateSync } from "node:fs";
import { test } from "node:test";
import { LogSource } from "@unkey/api/metal";
import { newId } from "@unkey/base";
import { vmFiles } from "@unkey/vmm";
import { eventually, MetalBed, stateName } from "./support/metal-bed.ts";

async function textOf(chunks: AsyncIterable<{ readonly data: Uint8Array; readonly droppedBytes: bigint }>) {
  let text = "";
  let dropped = 0n;
  for await (const chunk of chunks) {
    text += Buffer.from(chunk.data).toString();
    dropped += chunk.droppedBytes;
  }
  return { text, dropped };
}

test("a watcher sees what there is and every change after it, its own tenant's only", async (t) => {
  const bed = await MetalBed.open(t);
  const { vmId } = await bed.createAndBoot();
  const stop = new AbortController();
  const seen: string[] = [];
  const watching = (async () => {
    const stream = bed.client().watchVms({ tenantId: bed.tenantId }, { signal: stop.signal });
    for await (const vm of stream) seen.push(`${vm.vmId === vmId ? "first" : "other"} ${stateName(vm)}`);
  })();
  await eventually(() => seen.length === 1 || undefined, "the first look");
  await bed.client().pauseVm({ tenantId: bed.tenantId, vmId });
  await eventually(() => seen.includes("first PAUSED") || undefined, "the pause");
  const stranger = newId("tenant");
  await bed.client(stranger).createVm({ ...bed.wish(), tenantId: stranger });
  await bed.client().deleteVm({ tenantId: bed.tenantId, vmId });
  await eventually(() => seen.includes("first DELETED") || undefined, "the deletion");
  stop.abort();
  await assert.rejects(watching);
  assert.equal(seen[0], "first RUNNING");
  assert.deepEqual(
    seen.filter((line) => line.startsWith("other")),
    [],
  );
});

test("logs are followed until the VM ends", async (t) => {
  const bed = await MetalBed.open(t, { guestFor: () => ({ appOutput: "one\ntwo\n" }) });
  const { vmId } = await bed.createAndBoot();
  const id = { tenantId: bed.tenantId, vmId };
  const following = textOf(bed.client().streamLogs({ ...id, source: LogSource.APP, follow: true }));
  appendFileSync(vmFiles(bed.paths(vmId).runDir).appLog, "three\n");
  await bed.client().shutdownVm(id);
  assert.deepEqual(await following, { text: "one\ntwo\nthree\n", dropped: 0n });
  const tail = await textOf(bed.client().streamLogs({ ...id, source: LogSource.APP, tailLines: 2 }));
  assert.deepEqual(tail, { text: "two\nthree\n", dropped: 0n });
  assert.equal((await textOf(bed.client().streamLogs({ ...id, source: LogSource.CONSOLE }))).text, "");
});

test("a guest that never stops writing holds two segments of disk, and its readers learn what they missed", async (t) => {
  const limit = 4096;
  const bed = await MetalBed.open(t, { logLimitBytes: limit });
  const { vmId } = await bed.createAndBoot();
  const id = { tenantId: bed.tenantId, vmId, source: LogSource.APP };
  const { runDir, dir } = bed.paths(vmId);
  const live = vmFiles(runDir).appLog;
  let written = "";
  for (let round = 0; round < 5; round++) {
    const text = `round ${round} `.repeat(600);
    appendFileSync(live, text);
    written += text;
    await bed.run.service.boundLogs();
    assert.equal(statSync(live).size, 0);
  }
  appendFileSync(live, "the end");
  written += "the end";
  const kept = readdirSync(dir).filter((name) => name.startsWith("app.log."));
  assert.equal(kept.length, 1);
  const { text, dropped } = await textOf(bed.client().streamLogs(id));
  assert.equal(text, written.slice(-limit - "the end".length));
  assert.equal(Number(dropped), written.length - text.length);
});

test("a compromised hypervisor cannot make metald read or empty another file", async (t) => {
  const bed = await MetalBed.open(t, { logLimitBytes: 4096 });
  const { vmId } = await bed.createAndBoot();
  const { appLog, consoleLog } = vmFiles(bed.paths(vmId).runDir);
  const secret = `${bed.dir}/secret`;
  appendFileSync(secret, "x".repeat(10_000));
  rmSync(appLog, { force: true });
  rmSync(consoleLog, { force: true });
  symlinkSync(secret, appLog);
  symlinkSync("/dev/zero", consoleLog);
  await bed.run.service.boundLogs();
  for (const source of [LogSource.APP, LogSource.CONSOLE]) {
    assert.equal((await textOf(bed.client().streamLogs({ tenantId: bed.tenantId, vmId, source }))).text, "");
  }
  assert.equal(statSync(secret).size, 10_000);
  truncateSync(secret);
});
