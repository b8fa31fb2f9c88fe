/** `npm run check`: everything that can be said about the code without running it. All steps run; any failure fails the whole. */
import { spawnSync } from "node:child_process";
import { join } from "node:path";

const root = join(import.meta.dirname, "..");
const steps: readonly { name: string; command: readonly [string, ...string[]] }[] = [
  { name: "generated code is fresh", command: ["node", "scripts/generate.ts", "--check"] },
  { name: "contract lint", command: ["buf", "lint", "--path", "proto/unkey"] },
  { name: "types", command: ["tsc"] },
  { name: "lint", command: ["oxlint", "--type-aware"] },
  { name: "format", command: ["biome", "ci", "--colors=off", "."] },
  { name: "unused exports, files and dependencies", command: ["knip"] },
  { name: "import direction", command: ["node", "--test", "tests/repo/imports.test.ts"] },
  { name: "lock file is complete", command: ["node", "scripts/complete-lock.ts", "--check"] },
];

const failed: string[] = [];
for (const step of steps) {
  const startMs = performance.now();
  const [program, ...args] = step.command;
  const result = spawnSync(program, args, { cwd: root, encoding: "utf8" });
  const ok = result.status === 0;
  console.log(`${ok ? "ok  " : "FAIL"} ${step.name} (${((performance.now() - startMs) / 1000).toFixed(1)} s)`);
  if (!ok) {
    failed.push(step.name);
    console.log(`${result.stdout}${result.stderr}${result.error ? result.error.message : ""}`);
  }
}
if (failed.length > 0) {
  console.log(`npm run check failed: ${failed.join("; ")}`);
  process.exit(1);
}
