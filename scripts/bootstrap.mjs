/**
 * The one door of `npm run demo`, `npm test`, `npm run check` and `npm run bench`: makes a bare checkout on a bare Debian
 * machine ready, then hands over to the script of that name under the pinned Node. It is plain JavaScript because it runs
 * under whatever Node (18 or newer) the machine has.
 */
import { execFileSync, spawn } from "node:child_process";
import { createHash } from "node:crypto";
import {
  accessSync,
  constants,
  existsSync,
  mkdirSync,
  readFileSync,
  rmSync,
  symlinkSync,
  writeFileSync,
} from "node:fs";
import { delimiter, dirname, join } from "node:path";
import { fileURLToPath } from "node:url";

const root = dirname(dirname(fileURLToPath(import.meta.url)));
const commands = {
  demo: { script: "apps/cli/src/demo/main.ts", hostPackages: ["runtime"], needsRoot: "boots real microVMs" },
  test: { script: "scripts/test.ts", hostPackages: ["runtime", "test"] },
  check: { script: "scripts/check.ts", hostPackages: [] },
  bench: { script: "bench/main.ts", hostPackages: ["runtime", "test"], needsRoot: "boots real microVMs" },
};

const [name, ...args] = process.argv.slice(2);
const command = commands[name];
if (!command) {
  console.error(`usage: node scripts/bootstrap.mjs ${Object.keys(commands).join("|")} [arguments]`);
  process.exit(2);
}
const isRoot = process.getuid?.() === 0;
if (command.needsRoot && !isRoot) {
  console.error(
    `npm run ${name} ${command.needsRoot} and so needs root: for network namespaces, taps, nftables, cgroups and one\n` +
      `user id per VM. Run it again as root, for example: sudo npm run ${name}`,
  );
  process.exit(2);
}
installHostPackages(command.hostPackages);
installNpmPackages();
run(pinnedNode(), [join(root, command.script), ...args]);

/** Debian's `busybox` brings a program of the same name that needs libraries, which a VM's first program cannot have. */
function isPresent({ binary, static: mustBeStatic = false }) {
  const path = findOnPath(binary);
  return path !== undefined && (!mustBeStatic || isStaticElf(readFileSync(path)));
}

/** True for a 64-bit little-endian ELF file without a PT_INTERP segment; see elf(5). */
function isStaticElf(file) {
  if (file.length < 64 || file.readUInt32BE(0) !== 0x7f454c46 || file[4] !== 2 || file[5] !== 1) return false;
  const [start, size, count] = [Number(file.readBigUInt64LE(32)), file.readUInt16LE(54), file.readUInt16LE(56)];
  return Array.from({ length: count }, (_, i) => start + i * size).every((at) => file.readUInt32LE(at) !== 3);
}

/** Installs the Debian packages whose program is missing, and says which and why before it does. */
function installHostPackages(groups) {
  const listed = JSON.parse(readFileSync(join(root, "scripts/host-packages.json"), "utf8"));
  const missing = groups.flatMap((group) => listed[group]).filter((entry) => !isPresent(entry));
  if (missing.length === 0) return;
  console.error("These Debian packages are missing on this host:");
  for (const entry of missing) console.error(`  ${entry.package.padEnd(18)} ${entry.why}`);
  const names = missing.map((entry) => entry.package);
  if (!isRoot || findOnPath("apt-get") === undefined) {
    const advice = `apt-get install ${names.join(" ")}`;
    if (command.needsRoot) {
      console.error(`Install them (as root: ${advice}) and run npm run ${name} again.`);
      process.exit(2);
    }
    console.error(`Tests that need them are skipped. To run all: ${advice} (as root).\n`);
    return;
  }
  console.error("Installing them now.");
  withoutStartingServices(() => {
    const environment = { ...process.env, DEBIAN_FRONTEND: "noninteractive" };
    const apt = (...words) => execFileSync("apt-get", ["-q", ...words], { stdio: ["ignore", 2, 2], env: environment });
    const install = () => apt("install", "-y", "--no-install-recommends", ...names);
    try {
      install();
    } catch {
      // Lists may be missing or too old on a fresh machine.
      apt("update");
      install();
    }
  });
}

/** A package such as docker-registry would start a daemon on install; nobody asked for one. See policy-rc.d in invoke-rc.d(8). */
function withoutStartingServices(install) {
  const policy = "/usr/sbin/policy-rc.d";
  const ours = !existsSync(policy);
  if (ours) writeFileSync(policy, "#!/bin/sh\nexit 101\n", { mode: 0o755 });
  try {
    install();
  } catch (error) {
    console.error(`Installing failed: ${error.message}\nInstall the packages by hand and run npm run ${name} again.`);
    if (ours) rmSync(policy, { force: true });
    process.exit(1);
  }
  if (ours) rmSync(policy, { force: true });
}

/** Runs `npm ci` unless node_modules was made from this very lock file. */
function installNpmPackages() {
  const lock = createHash("sha256")
    .update(readFileSync(join(root, "package-lock.json")))
    .digest("hex");
  const stamp = join(root, "node_modules/.cache/installed-lock");
  if (existsSync(stamp) && readFileSync(stamp, "utf8") === lock && existsSync(pinnedNode())) return;
  console.error("Installing npm packages (about 1 GB with the ClickHouse engine; a minute).");
  try {
    execFileSync("npm", ["ci", "--no-audit", "--no-fund", "--loglevel=error"], { cwd: root, stdio: ["ignore", 2, 2] });
  } catch {
    console.error(`npm ci failed; see above. Mend it and run npm run ${name} again.`);
    process.exit(1);
  }
  linkPinnedNode();
  mkdirSync(dirname(stamp), { recursive: true });
  writeFileSync(stamp, lock);
}

function pinnedNode() {
  return join(root, "node_modules/.bin/node");
}

/** npm 9, which Debian 12 ships, leaves out the link to a program named `node`. */
function linkPinnedNode() {
  const program = `../node-linux-${process.arch}/bin/node`;
  if (!existsSync(pinnedNode())) symlinkSync(program, pinnedNode());
}

function findOnPath(binary) {
  const folders = `${process.env.PATH ?? ""}${delimiter}/usr/sbin${delimiter}/sbin`.split(delimiter);
  return folders
    .map((folder) => join(folder, binary))
    .find((path) => {
      try {
        accessSync(path, constants.X_OK);
        return true;
      } catch {
        return false;
      }
    });
}

/** Replaces this process as far as Node can: same terminal, signals passed on, same exit status. */
function run(program, words) {
  const path = [join(root, "node_modules/.bin"), process.env.PATH, "/usr/sbin", "/sbin"].join(delimiter);
  const child = spawn(program, words, { cwd: root, stdio: "inherit", env: { ...process.env, PATH: path } });
  // The terminal sends Ctrl-C to both; only what is sent to this process alone needs passing on.
  process.on("SIGINT", () => {});
  process.on("SIGTERM", () => child.kill("SIGTERM"));
  child.on("exit", (code, signal) => process.exit(code ?? (signal === "SIGINT" ? 130 : 1)));
}
