/**
 * `npm test [-- pattern…]`: unit, contract and integration tests side by side, then the end-to-end tests one file after another,
 * because a booting guest wants the machine for itself. Skipped tests are listed with their reasons; with CI=true a skipped
 * end-to-end test fails the run.
 */
import { spawnSync } from "node:child_process";
import { globSync, mkdirSync, readFileSync, rmSync } from "node:fs";
import { join } from "node:path";
import type { SkippedTest } from "./skip-reporter.ts";

const root = join(import.meta.dirname, "..");
const skippedFile = join(root, "node_modules/.cache/skipped-tests.ndjson");
const wanted = process.argv.slice(2);
for (const pattern of wanted) {
  if (pattern.startsWith("-") || globSync(pattern, { cwd: root }).length > 0) continue;
  console.error(`no file matches ${pattern}`);
  process.exit(2);
}
const runs =
  wanted.length > 0
    ? [{ name: "chosen", concurrency: 1, patterns: wanted }]
    : [
        {
          name: "unit, contract and integration",
          concurrency: 2,
          patterns: [
            "packages/**/*.test.ts",
            "services/**/*.test.ts",
            "apps/**/*.test.ts",
            "guest/**/*.test.ts",
            "tests/repo/*.test.ts",
          ],
        },
        { name: "end to end", concurrency: 1, patterns: ["tests/e2e/**/*.test.ts"] },
      ];

let ok = true;
const skipped: SkippedTest[] = [];
mkdirSync(join(root, "node_modules/.cache"), { recursive: true });
for (const run of runs) {
  console.log(`\n# ${run.name} tests`);
  rmSync(skippedFile, { force: true });
  const result = spawnSync(
    "node",
    [
      "--test",
      `--test-concurrency=${run.concurrency}`,
      "--test-timeout=300000",
      "--test-reporter=spec",
      "--test-reporter-destination=stdout",
      `--test-reporter=${join(root, "scripts/skip-reporter.ts")}`,
      `--test-reporter-destination=${skippedFile}`,
      ...run.patterns,
    ],
    { cwd: root, stdio: ["ignore", "inherit", "inherit"] },
  );
  ok &&= result.status === 0;
  skipped.push(...readSkipped());
}

if (skipped.length > 0) {
  console.log("\nSkipped, because this host lacks something:");
  for (const test of skipped) console.log(`  ${test.file}: ${test.name}\n    ${test.reason}`);
}
const endToEnd = skipped.filter((test) => test.file.startsWith("tests/e2e/"));
if (process.env["CI"] === "true" && endToEnd.length > 0) {
  console.log(`\n${endToEnd.length} end-to-end tests were skipped; in CI they must run.`);
  ok = false;
}
process.exit(ok ? 0 : 1);

function readSkipped(): SkippedTest[] {
  const lines = readFileSync(skippedFile, "utf8").split("\n");
  return lines.filter((line) => line !== "").map((line) => JSON.parse(line) as SkippedTest);
}
