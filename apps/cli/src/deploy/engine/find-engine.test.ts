import assert from "node:assert/strict";
import { mkdtemp, rm, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { delimiter, join, relative } from "node:path";
import { test } from "node:test";
import { findEngine } from "./find-engine.ts";

test("an engine that lies beside what is built is not run, whatever PATH says", async (context) => {
  const directory = await mkdtemp(join(tmpdir(), "engine-"));
  context.after(() => rm(directory, { recursive: true }));
  await writeFile(join(directory, "buildctl"), "#!/bin/sh\nexit 0\n", { mode: 0o755 });
  const options = { cwd: directory, secrets: false, signal: new AbortController().signal };
  const here = relative(process.cwd(), directory);
  const PATH = [".", "", here, `./${here}`].join(delimiter);
  await assert.rejects(findEngine({ PATH }, options), /none can be used here/);
  const { program } = await findEngine({ PATH: `${PATH}${delimiter}${directory}` }, options);
  assert.equal(program, join(directory, "buildctl"));
});
