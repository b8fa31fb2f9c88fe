import assert from "node:assert/strict";
import { execFileSync } from "node:child_process";
import { chmodSync, chownSync, renameSync, rmSync, writeFileSync } from "node:fs";
import { mkdtemp, rm } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { type TestContext, test } from "node:test";
import { createLogger } from "@unkey/daemon";
import { OperatorFile, type OperatorFileOptions } from "./operator-file.ts";

async function setup(context: TestContext) {
  const directory = await mkdtemp(join(tmpdir(), "operator-file-"));
  context.after(() => rm(directory, { recursive: true, force: true }));
  const lines: string[] = [];
  const log = createLogger({ write: (line) => lines.push(line) });
  const path = join(directory, "settings");
  const parse: OperatorFileOptions<string>["parse"] = (text, read) => {
    if (text.startsWith("wrong")) throw new Error(`${text} is no setting`);
    return text.startsWith("@") ? read(join(directory, text.slice(1))) : text;
  };
  return {
    directory,
    path,
    /** As editors and deployment tools do it. */
    write: (text: string, name = "settings", mode = 0o600): void => {
      const partial = join(directory, "partial");
      writeFileSync(partial, text, { mode });
      renameSync(partial, join(directory, name));
    },
    open: (isPrivate = false) => new OperatorFile({ path, name: "the list", parse, isPrivate, log }),
    told: (): number => lines.filter((line) => line.includes("refused")).length,
    read: (): number => lines.filter((line) => line.includes("was read")).length,
    last: (): string => lines.at(-1) ?? "",
  };
}

test("a file is read again when it or one that it names has changed, and not before", async (context) => {
  const { write, open, read, path } = await setup(context);
  write("a");
  const file = open();
  assert.deepEqual([file.value, file.value, file.problem, read()], ["a", "a", undefined, 1]);
  write("@other");
  write("b", "other");
  assert.deepEqual([file.value, file.value, read()], ["b", "b", 2]);
  write("c", "other");
  assert.deepEqual([file.value, read()], ["c", 3]);
  writeFileSync(path, "longer than before");
  assert.equal(file.value, "longer than before");
});

test("a wrong file is refused at the start, once and without a word about an earlier one", async (context) => {
  const { write, open, told } = await setup(context);
  assert.throws(() => open(), /^Error: the list .*settings: ENOENT/);
  write("wrong 1");
  assert.throws(() => open(), /^Error: the list .*settings: wrong 1 is no setting$/);
  assert.equal(told(), 0, "who starts the daemon tells it");
});

test("a file that has become wrong leaves the last right one; each mistake is told once, in one place", async (context) => {
  const { write, open, told, last, path } = await setup(context);
  write("a");
  const file = open();
  const mistakes = [() => write("wrong 1"), () => write("wrong 2"), () => rmSync(path), () => write("@missing")];
  for (const [before, mistake] of mistakes.entries()) {
    mistake();
    for (let again = 0; again < 3; again++) {
      assert.equal(file.value, "a");
      assert.throws(() => file.check(), /the list .*settings: /);
    }
    assert.equal(told(), before + 1);
  }
  assert.match(last(), /the last right one stays/);
  write("wrong 3");
  assert.throws(() => file.check());
  const { error } = JSON.parse(last()) as { error: { causes: string[] } };
  assert.deepEqual(
    error.causes.map((line) => line.includes("wrong 3")),
    [true],
  );
  write("b");
  file.check();
  assert.equal(file.value, "b");
});

test("what is missing is found when it comes, though the file itself is the same", async (context) => {
  const { write, open } = await setup(context);
  write("a");
  const file = open();
  write("@other");
  assert.throws(() => file.check(), /ENOENT/);
  write("b", "other");
  file.check();
  assert.equal(file.value, "b");
});

test("only regular files of a bounded size are read", async (context) => {
  const { write, open, directory, path } = await setup(context);
  write("x".repeat(2 ** 20));
  open();
  write("x".repeat(2 ** 20 + 1));
  assert.throws(() => open(), /is over 1 MiB/);
  rmSync(path);
  execFileSync("mkfifo", [path], { cwd: directory });
  assert.throws(() => open(), /is not a regular file/);
});

test("a private file is its user's alone, and so are those that it names", async (context) => {
  const { write, open, directory, path } = await setup(context);
  write("a", "settings", 0o640);
  assert.equal(open().value, "a", "where nothing is secret");
  assert.throws(() => open(true), /can be read by others; run chmod 600/);
  write("@other");
  write("b", "other", 0o604);
  assert.throws(() => open(true), /other can be read by others/);
  chmodSync(join(directory, "other"), 0o600);
  const file = open(true);
  chmodSync(path, 0o644);
  assert.match(file.problem?.message ?? "", /read by others/);
  chmodSync(path, 0o600);
  file.check();
  if (process.geteuid?.() !== 0) return;
  chownSync(path, 1234, 0);
  assert.throws(() => file.check(), /belongs to another user/);
});
