import assert from "node:assert/strict";
import { test } from "node:test";
import { isSqlError } from "./sql.ts";
import { WriteAheadLog } from "./write-ahead-log.ts";

/** A file whose syncs end when the test says so. */
function fileInHand() {
  const syncs: PromiseWithResolvers<void>[] = [];
  const datasync = () => {
    const sync = Promise.withResolvers<void>();
    syncs.push(sync);
    return sync.promise;
  };
  return { syncs, file: { datasync, close: async () => undefined } };
}

const turn = () => new Promise((resolve) => setImmediate(resolve));

test("a commit is durable by a sync that began after it, and one sync serves all who wait", async () => {
  const { syncs, file } = fileInHand();
  const log = new WriteAheadLog(file);
  await log.durable(); // nothing to wait for
  const acknowledged: string[] = [];
  const commit = (name: string) => {
    log.committed("power");
    return log.durable().then(() => acknowledged.push(name));
  };
  const all = [commit("a")];
  all.push(commit("b"), commit("c")); // while the sync for a is under way
  syncs[0]?.resolve();
  await turn();
  assert.deepEqual(acknowledged, ["a"]);
  assert.equal(syncs.length, 2);
  syncs[1]?.resolve();
  await Promise.all(all);
  assert.deepEqual(acknowledged, ["a", "b", "c"]);
  assert.equal(syncs.length, 2);
});

test("a commit that nobody waits for is not synced by itself, and goes with the next that is", async () => {
  const { syncs, file } = fileInHand();
  const log = new WriteAheadLog(file);
  log.committed("process");
  await log.durable();
  assert.equal(syncs.length, 0);
  log.committed("power");
  const both = log.durable();
  log.committed("process");
  syncs[0]?.resolve();
  await both;
  await log.durable();
  assert.equal(syncs.length, 1);
  log.demandAll();
  const last = log.durable();
  syncs[1]?.resolve();
  await last;
  log.demandAll();
  await log.durable();
  assert.equal(syncs.length, 2, "all of it is durable");
});

test("after a sync that failed nothing more is acknowledged", async () => {
  const { syncs, file } = fileInHand();
  const log = new WriteAheadLog(file);
  log.committed("power");
  const first = log.durable();
  syncs[0]?.reject(new Error("I/O error"));
  await assert.rejects(first, (error) => isSqlError(error, "other"));
  log.committed("power");
  await assert.rejects(log.durable(), (error) => isSqlError(error, "other"));
  assert.equal(syncs.length, 1);
  await log[Symbol.asyncDispose]();
});
