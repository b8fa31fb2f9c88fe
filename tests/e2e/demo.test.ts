import assert from "node:assert/strict";
import { spawn } from "node:child_process";
import { globSync, readFileSync } from "node:fs";
import { mkdtemp, readdir, rm } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { test } from "node:test";
import { leftovers, skipReason } from "./harness/host.ts";

const demo = join(import.meta.dirname, "../../apps/cli/src/demo/main.ts");

test("the demo shows a page and its price, and leaves nothing behind", { skip: skipReason }, async (t) => {
  // Short: sockets lie deep inside, and their paths have a limit.
  const scratch = await mkdtemp(join(tmpdir(), "demo-"));
  t.after(() => rm(scratch, { recursive: true, force: true }));
  // Settings that name another platform must not lead the demo there.
  const elsewhere = {
    UNKEY_HOME: join(scratch, "another"),
    UNKEY_API_URL: "https://127.0.0.1:9",
    UNKEY_API_KEY: "none",
  };
  const child = spawn(process.execPath, [demo, "--once", "--ports", "auto"], {
    env: { ...process.env, ...elsewhere, TMPDIR: scratch },
    stdio: ["ignore", "pipe", "pipe"],
  });
  let output = "";
  let instance = "";
  for (const stream of [child.stdout, child.stderr]) {
    stream.setEncoding("utf8").on("data", (text: string) => {
      output += text;
      const [log] = globSync(join(scratch, "unkey-demo-*/home/logs/metald.log"));
      if (instance === "" && log !== undefined) {
        instance = /"instance":"([^"]+)"/.exec(readFileSync(log, "utf8"))?.[1] ?? "";
      }
    });
  }
  const status = await new Promise((resolve) => child.on("close", (code, signal) => resolve(code ?? signal)));
  assert.equal(status, 0, output);
  assert.match(output, /Hello from a microVM/);
  assert.match(output, /^total .* USD$/m);
  assert.notEqual(instance, "", "metald named its instance");
  assert.deepEqual(leftovers(instance, scratch), []);
  assert.deepEqual(await readdir(scratch), []);
});
