import assert from "node:assert/strict";
import { test } from "node:test";
import { ServiceError } from "@unkey/base";
import { appNameOf, planProcess } from "./release-plan.ts";

const image = {
  argv: ["/bin/server", "--fast"],
  env: [
    { name: "PATH", value: "/bin" },
    { name: "MODE", value: "image" },
  ],
  exposedPorts: [9090, 3000],
};
const nothing = { argv: [], env: [], port: 0 };

test("what the caller gives wins over the image, name by name", () => {
  const plan = planProcess(image, { argv: ["/bin/other"], env: [{ name: "MODE", value: "mine" }], port: 81 });
  assert.deepEqual(plan.argv, ["/bin/other"]);
  assert.deepEqual(Object.fromEntries(plan.env.map(({ name, value }) => [name, value])), {
    PATH: "/bin",
    MODE: "mine",
    PORT: "81",
  });
  assert.equal(plan.port, 81);
});

test("the port is the one given, else the lowest exposed, else 8080", () => {
  assert.equal(planProcess(image, { ...nothing, port: 5 }).port, 5);
  assert.equal(planProcess(image, nothing).port, 3000);
  assert.equal(planProcess({ ...image, exposedPorts: [] }, nothing).port, 8080);
});

test("PORT is told to the program unless somebody set it", () => {
  const portOf = (plan: ReturnType<typeof planProcess>) => plan.env.find(({ name }) => name === "PORT")?.value;
  assert.equal(portOf(planProcess(image, nothing)), "3000");
  assert.equal(portOf(planProcess({ ...image, env: [{ name: "PORT", value: "7" }] }, nothing)), "7");
  assert.equal(portOf(planProcess(image, { ...nothing, env: [{ name: "PORT", value: "" }] })), "");
});

test("without any command there is nothing to run", () => {
  assert.throws(
    () => planProcess({ ...image, argv: [] }, nothing),
    (error) => error instanceof ServiceError && error.reason === "IMAGE_NO_COMMAND",
  );
  assert.deepEqual(planProcess({ ...image, argv: [] }, { ...nothing, argv: ["a"] }).argv, ["a"]);
});

test("an app is called as its image", () => {
  for (const [reference, name] of [
    ["alpine", "alpine"],
    ["ghcr.io/acme/web-app:1.2", "web-app"],
    ["localhost:5000/a/B_c.d@sha256:abc", "b-c-d"],
    ["registry:5000/thing", "thing"],
    ["x/123", undefined],
  ] as const) {
    assert.equal(appNameOf(reference), name, reference);
  }
});
