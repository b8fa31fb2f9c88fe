import assert from "node:assert/strict";
import { test } from "node:test";
import { create } from "@bufbuild/protobuf";
import { ProcessConfigSchema, ResourcesSchema } from "@unkey/api/common";
import { VmSpecSchema, VmState } from "@unkey/api/metal";
import { isServiceError, mib, newId } from "@unkey/base";
import { DaemonBed } from "./support/daemon-bed.ts";
import { eventually } from "./support/metal-bed.ts";

test("the daemon without guests says so, samples by itself, and stops in order with its VM left alone", async (t) => {
  const bed = await DaemonBed.open(t, "memory");
  const vmId = newId("vm");
  const id = { tenantId: bed.tenantId, vmId };
  const wish = {
    ...id,
    appId: "app_0",
    spec: create(VmSpecSchema, {
      resources: create(ResourcesSchema, { vcpuCount: 1, memoryBytes: BigInt(96 * mib), diskBytes: BigInt(16 * mib) }),
      rootfsAssetId: bed.rootfsAssetId,
      process: create(ProcessConfigSchema, { argv: ["/app"] }),
    }),
  };
  await bed.call("gatewayd", (client, options) => client.createVm(wish, options));
  const vm = await bed.call("gatewayd", (client, options) => client.bootVm(id, options));
  assert.equal(vm.state, VmState.RUNNING);
  assert.equal(vm.ipAddress, "");
  await eventually(() => bed.billaged.frames.length >= 3 || undefined, "frames");
  const host = await bed.call("operator", (client, options) => client.getHost({}, options));
  assert.deepEqual([host.hypervisor, host.acceleration], ["memory", "none"]);
  assert.deepEqual(
    host.layers.filter((layer) => layer.active),
    [],
  );
  await assert.rejects(
    bed.call("operator", (client, options) => client.pauseVm(id, options)),
    (error) => isServiceError(error) && error.code === "permission_denied",
  );
  await bed.stop();
  assert.ok(bed.logLines.some((line) => line.includes('"stopped"') && line.includes('"clean":true')));
});
