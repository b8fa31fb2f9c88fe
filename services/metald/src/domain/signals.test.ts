import assert from "node:assert/strict";
import { constants } from "node:os";
import { test } from "node:test";
import { signalName, signalNumber } from "./signals.ts";

test("agrees with this Linux, and reads back every name that it writes", () => {
  for (const [name, number] of Object.entries(constants.signals)) assert.equal(signalNumber(name), number, name);
  for (let number = 1; number <= 64; number++) {
    if (number === 32 || number === 33) continue; // the C library keeps them for itself
    assert.equal(signalNumber(signalName(number)), number);
  }
});

test("reads signals as images write them, and nothing else", () => {
  assert.deepEqual(
    ["TERM", "SIGTERM", "15", "SIGRTMIN+3", "RTMIN+3", "SIGRTMIN"].map(signalNumber),
    [15, 15, 15, 37, 37, 34],
  );
  for (const text of ["", "SIG", "SIGNOPE", "0", "65", "99", "SIGRTMIN+31", "term", "SIGTERM;reboot"]) {
    assert.equal(signalNumber(text), undefined, text);
  }
});
