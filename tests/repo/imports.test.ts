import assert from "node:assert/strict";
import { globSync, readFileSync } from "node:fs";
import { dirname, join, relative, resolve } from "node:path";
import { test } from "node:test";

const root = join(import.meta.dirname, "../..");

/**
 * Who may import whom, as the first folders of the importing file → names behind @unkey/. A workspace that is missing here
 * may import nothing.
 */
const ports = ["sql", "clickhouse", "oci", "vmm", "cgroup", "attest"];
const allowed: Readonly<Record<string, readonly string[]>> = {
  "packages/base": [],
  "packages/api": [],
  "packages/model": ["base"],
  "packages/pki": ["base"],
  "packages/sql": ["base"],
  "packages/clickhouse": ["base"],
  "packages/erofs": ["base"],
  "packages/attest": ["base"],
  "packages/cgroup": ["base"],
  "packages/oci": ["base", "erofs"],
  "packages/daemon": ["base"],
  "packages/vmm": ["base", "model"],
  "packages/rpc": ["api", "base", "daemon", "pki"],
  "packages/testkit": ["api", "base", "model", "daemon", "pki", "rpc", ...ports, "guest"],
  guest: ["base"],
  "services/assetmanagerd": ["api", "base", "model", "daemon", "rpc", "pki", ...ports],
  "services/builderd": ["api", "base", "model", "daemon", "rpc", "pki", ...ports, "erofs"],
  "services/metald": ["api", "base", "model", "daemon", "rpc", "pki", ...ports, "guest", "erofs"],
  "services/billaged": ["api", "base", "model", "daemon", "rpc", "pki", ...ports],
  "services/billing-aggregator": ["api", "base", "model", "daemon", "rpc", "pki", ...ports],
  "services/gatewayd": ["api", "base", "model", "daemon", "rpc", "pki", ...ports],
  // The CLI is a client of the public API; `unkey dev` and the demo also supervise daemons, issue identities and prepare the guest.
  "apps/cli": ["api", "base", "model", "daemon", "pki", "rpc", "guest", "oci"],
  scripts: ["api"],
};
/** Tests, benches and the testkit may start anything; a test beside its source may also use any other package. */
const unrestricted = ["tests", "bench", "packages/testkit"];

const files = globSync("{packages,services,apps,guest,tests,bench,scripts}/**/*.ts", {
  cwd: root,
  exclude: (path) => path.includes("node_modules") || path.includes("src/gen"),
});

test("there is something to check", () => assert.ok(files.length > 50));

for (const file of files) {
  const workspace = file
    .split("/")
    .slice(0, /^(packages|services|apps)\//.test(file) ? 2 : 1)
    .join("/");
  const isTest = /\.(test|contract)\.ts$|\/(test|testing)\//.test(file);
  const source = readFileSync(join(root, file), "utf8");
  const imports = [...source.matchAll(/(?:^|\n)(?:import|export)\b[^;]*?from\s+"([^"]+)"|\bimport\("([^"]+)"\)/g)].map(
    (match) => match[1] ?? match[2] ?? "",
  );
  const problems: string[] = [];
  for (const specifier of imports) {
    if (specifier.startsWith(".")) {
      const target = relative(root, resolve(root, dirname(file), specifier));
      if (!target.startsWith(`${workspace}/`) && !unrestricted.includes(workspace) && workspace !== "scripts") {
        problems.push(`${specifier} leaves ${workspace}: go through the package's door`);
      }
      if (target.includes("/domain/") || !file.includes("/domain/")) continue;
      if (/\/(adapters|service|handlers|wiring|ports)/.test(target))
        problems.push(`${specifier}: domain/ imports no effects`);
    } else if (specifier.startsWith("@unkey/")) {
      const name = specifier.split("/")[1] ?? "";
      const rule = allowed[workspace] ?? [];
      if (name === "testkit" && !isTest && !unrestricted.includes(workspace))
        problems.push(`${specifier}: only tests import the testkit`);
      else if (name !== "testkit" && !isTest && !rule.includes(name) && !unrestricted.includes(workspace)) {
        problems.push(`${specifier}: ${workspace} may import ${rule.join(", ") || "nothing of ours"}`);
      }
    } else if (
      /^node:(fs|net|http|child_process|dgram|tls|os)/.test(specifier) &&
      file.includes("/domain/") &&
      !isTest
    ) {
      problems.push(`${specifier}: domain/ does no I/O`);
    }
  }
  if (problems.length > 0) test(`imports of ${file}`, () => assert.deepEqual(problems, []));
}
