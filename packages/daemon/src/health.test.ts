import assert from "node:assert/strict";
import { test } from "node:test";
import { Health } from "./health.ts";

test("a check may throw at once, reject, or never answer: each is that dependency's failure and nobody else's", async (t) => {
  t.mock.timers.enable({ apis: ["setTimeout"] });
  const unhandled: unknown[] = [];
  const note = (error: unknown) => unhandled.push(error);
  process.on("unhandledRejection", note);
  t.after(() => process.off("unhandledRejection", note));
  const health = new Health("metald", new Map());
  health.dependency("throws", () => {
    throw new Error("at once");
  });
  health.dependency("rejects", () => Promise.reject(new Error("later")));
  let signal: AbortSignal | undefined;
  health.dependency("hangs", (given) => {
    signal = given;
    return new Promise(() => undefined);
  });
  health.dependency("fine", () => undefined);
  const reported = health.report();
  await new Promise((resolve) => setImmediate(resolve));
  t.mock.timers.tick(2000);
  const { dependencies } = await reported;
  assert.deepEqual(
    Object.entries(dependencies).map(([name, { ok, error }]) => [name, ok, error]),
    [
      ["throws", false, "at once"],
      ["rejects", false, "later"],
      ["hangs", false, "no answer within 2000 ms"],
      ["fine", true, undefined],
    ],
  );
  assert.equal(signal?.aborted, true);
  t.mock.timers.tick(10_000);
  await new Promise((resolve) => setImmediate(resolve));
  assert.deepEqual(unhandled, []);
});
