/**
 * Completes package-lock.json with the foreign-platform optional packages that npm leaves out when the registry it asks does
 * not carry them: without an entry for each, `npm ci` refuses the lock on every machine. An added entry carries no integrity
 * hash, and os and cpu are read from the package's name; npm skips it wherever they do not match. With --check it only
 * fails when an entry is missing.
 */
import { readFileSync, writeFileSync } from "node:fs";
import { join } from "node:path";

interface LockEntry {
  version?: string;
  optional?: boolean;
  os?: string[];
  cpu?: string[];
  libc?: string[];
  optionalDependencies?: Record<string, string>;
}

const path = join(import.meta.dirname, "../package-lock.json");
const lock = JSON.parse(readFileSync(path, "utf8")) as { packages: Record<string, LockEntry> };
const systems = ["linux", "darwin", "win32", "freebsd", "openbsd", "netbsd", "android", "aix", "sunos", "openharmony"];
const processors = ["x64", "arm64", "arm", "ia32", "ppc64", "riscv64", "s390x", "loong64", "mips64el", "wasm32"];

const missing = new Map<string, LockEntry>();
for (const entry of Object.values(lock.packages)) {
  for (const [name, version] of Object.entries(entry.optionalDependencies ?? {})) {
    const key = `node_modules/${name}`;
    if (lock.packages[key] || !/^\d+\.\d+\.\d+/.test(version)) continue;
    const words = name.split(/[/@-]/);
    const os = systems.filter((system) => words.includes(system));
    const cpu = processors.filter((processor) => words.includes(processor));
    missing.set(key, {
      version,
      ...(cpu.length > 0 ? { cpu } : {}),
      optional: true,
      ...(os.length > 0 ? { os } : {}),
      ...(words.includes("musl") ? { libc: ["musl"] } : {}),
    });
  }
}

if (process.argv.includes("--check")) {
  if (missing.size > 0) {
    console.error(`package-lock.json lacks ${[...missing.keys()].join(", ")}: run \`node scripts/complete-lock.ts\``);
    process.exit(1);
  }
} else if (missing.size > 0) {
  const packages = Object.entries({ ...lock.packages, ...Object.fromEntries(missing) });
  lock.packages = Object.fromEntries(packages.sort(([a], [b]) => (a < b ? -1 : 1)));
  writeFileSync(path, `${JSON.stringify(lock, null, 2)}\n`);
  console.log(`added ${missing.size} entries to package-lock.json`);
}
