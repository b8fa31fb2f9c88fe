import assert from "node:assert/strict";
import { test } from "node:test";
import { type DescFile, type DescMethod, getOption } from "@bufbuild/protobuf";
import { file_unkey_asset_v1_asset } from "@unkey/api/asset";
import { file_unkey_billing_v1_billing } from "@unkey/api/billing";
import { file_unkey_builder_v1_builder } from "@unkey/api/builder";
import { file_unkey_gateway_v1_gateway } from "@unkey/api/gateway";
import { file_unkey_metal_v1_metal } from "@unkey/api/metal";
import { file_unkey_metering_v1_metering } from "@unkey/api/metering";
import { scope } from "@unkey/api/options";
import { healthPorts } from "@unkey/daemon";
import { accessRuleOf } from "./access.ts";

const files: DescFile[] = [
  file_unkey_asset_v1_asset,
  file_unkey_billing_v1_billing,
  file_unkey_builder_v1_builder,
  file_unkey_gateway_v1_gateway,
  file_unkey_metal_v1_metal,
  file_unkey_metering_v1_metering,
];
const methods: DescMethod[] = files.flatMap((file) => file.services.flatMap((service) => service.methods));
const nameOf = (method: DescMethod) => `${method.parent.typeName}/${method.name}`;

test("every RPC of the platform says who may call it: services by name, the public by scope", () => {
  assert.ok(methods.length > 60, `only ${methods.length} RPCs found`);
  const open = methods.filter((method) => accessRuleOf(method) === undefined && getOption(method, scope) === "");
  assert.deepEqual(open.map(nameOf), []);
});

test("an RPC is either internal or public", () => {
  const both = methods.filter((method) => accessRuleOf(method) !== undefined && getOption(method, scope) !== "");
  assert.deepEqual(both.map(nameOf), []);
});

test("every caller in an allow-list exists", () => {
  const known = new Set([...Object.keys(healthPorts), "operator"]);
  const unknown = methods.flatMap((method) =>
    (accessRuleOf(method)?.callers ?? [])
      .filter((caller) => !known.has(caller))
      .map((caller) => `${nameOf(method)}: ${caller}`),
  );
  assert.deepEqual(unknown, []);
});
