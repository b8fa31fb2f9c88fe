import assert from "node:assert/strict";
import { suite, test } from "node:test";
import type { LogFolder } from "./ports.ts";

/** What every folder of the log promises. */
export function logFolderContract(
  name: string,
  create: () => Promise<{ folder: LogFolder; remove(): Promise<void> }>,
): void {
  suite(`${name} keeps the contract of a log folder`, () => {
    test("holds what was appended, under names that are taken once", async () => {
      const place = await create();
      const { folder } = place;
      try {
        assert.deepEqual(await folder.list(), []);
        const file = await folder.create("a");
        await file.append(Buffer.from("one "));
        await file.append(Buffer.alloc(0));
        await file.append(Buffer.from("two"));
        await file.sync();
        await file.close();
        await folder.syncEntries();
        await assert.rejects(folder.create("a"));
        await (await folder.create("b")).close();
        assert.deepEqual((await folder.list()).toSorted(), ["a", "b"]);
        assert.equal(Buffer.from(await folder.read("a")).toString(), "one two");
        await folder.remove("a");
        await assert.rejects(folder.remove("a"));
        await assert.rejects(folder.read("a"));
        assert.deepEqual(await folder.list(), ["b"]);
      } finally {
        await place.remove();
      }
    });
  });
}
