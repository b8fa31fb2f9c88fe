import assert from "node:assert/strict";
import { test } from "node:test";
import type { DescMessage } from "@bufbuild/protobuf";
import { GatewayService } from "@unkey/api/gateway";
import { errorCatalogue } from "@unkey/base";
import { cliFields, cliNextSteps, messageHere, nextStepHere } from "./cli-words.ts";

test("a next step of the catalogue is said in words of the command line; one for the very case stays", () => {
  const { nextStep } = errorCatalogue.IMAGE_NO_COMMAND;
  assert.equal(nextStepHere("IMAGE_NO_COMMAND", nextStep), cliNextSteps.IMAGE_NO_COMMAND);
  assert.equal(nextStepHere("IMAGE_NO_COMMAND", "Ask Ada."), "Ask Ada.");
  assert.equal(
    nextStepHere("APP_NOT_FOUND", errorCatalogue.APP_NOT_FOUND.nextStep),
    "List the apps with `unkey apps`.",
  );
  assert.equal(nextStepHere("OF_ANOTHER_RELEASE", "Read on."), "Read on.");
});

test("fields of a request are called what they are called here", () => {
  for (const [message, here] of [
    ["vm_count: must be at most 64 [uint32.lte]", "--vms: must be at most 64"],
    [
      "env[12].value: must be at most 65536 characters [string.max_len]; resources.vcpu_count: must be at least 1",
      "--env: must be at most 65536 characters; --vcpus: must be at least 1",
    ],
    ['deployment_id: "x" is not an id of the form dep_…', 'the deployment\'s id: "x" is not an id of the form dep_…'],
    ["other_field: stays as it is", "other_field: stays as it is"],
    ["the tenant has no app vm_id: x", "the tenant has no app vm_id: x"],
    ["a sentence; and another", "a sentence; and another"],
  ] as const) {
    assert.equal(messageHere(message), here);
  }
});

test("every field that has a name here is one of a request", () => {
  const paths = new Set(GatewayService.methods.flatMap(({ input }) => [...fieldPaths(input)]));
  assert.deepEqual(
    Object.keys(cliFields).filter((path) => !paths.has(path)),
    [],
  );
});

function* fieldPaths(message: DescMessage, above = ""): Generator<string> {
  for (const field of message.fields) {
    const path = above + field.name;
    yield path;
    if (field.message !== undefined && path.split(".").length < 4) yield* fieldPaths(field.message, `${path}.`);
  }
}
