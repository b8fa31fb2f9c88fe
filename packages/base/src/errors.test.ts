import assert from "node:assert/strict";
import { test } from "node:test";
import { errorCatalogue } from "./error-catalogue.ts";
import { causeChain, isServiceError, ServiceError } from "./errors.ts";

test("a reason fixes code and next step; the thrower may know a better step", () => {
  const error = new ServiceError("IMAGE_NOT_FOUND", "there is no image x", { metadata: { image: "x" } });
  assert.equal(error.code, errorCatalogue.IMAGE_NOT_FOUND.code);
  assert.equal(error.nextStep, errorCatalogue.IMAGE_NOT_FOUND.nextStep);
  assert.deepEqual(error.metadata, { image: "x" });
  assert.equal(new ServiceError("IMAGE_NOT_FOUND", "x", { nextStep: "Look again." }).nextStep, "Look again.");
  assert.ok(isServiceError(error, "IMAGE_NOT_FOUND") && !isServiceError(error, "VM_NOT_FOUND"));
});

test("every next step of the catalogue is a sentence", () => {
  for (const [reason, { nextStep }] of Object.entries(errorCatalogue)) {
    assert.match(nextStep, /^[A-Z].{8,}(?:\.|…)$/, reason);
    assert.match(reason, /^[A-Z]+(?:_[A-Z]+)*$/);
  }
});

test("causes are told outermost first, whatever they are, and a circle ends", () => {
  const error = new ServiceError("INTERNAL", "outer", { cause: new TypeError("inner", { cause: { code: 7 } }) });
  assert.deepEqual(causeChain(error), ["ServiceError: outer", "TypeError: inner", "{ code: 7 }"]);
  const circle = new Error("round");
  circle.cause = circle;
  assert.equal(causeChain(circle).length, 16);
});
