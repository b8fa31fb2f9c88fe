import { accessSync, constants, readFileSync } from "node:fs";
import { join } from "node:path";
import { isStaticElf } from "@unkey/guest";
import { CliFailure, exitCodes } from "../failure.ts";

/** A program that the platform runs, and the Debian package that brings it. */
interface HostProgram {
  readonly package: string;
  readonly binary: string;
  /** Debian's `busybox` brings a program of the same name that needs libraries. */
  readonly static?: boolean;
  readonly why: string;
}

export interface Check {
  readonly name: string;
  readonly ok: boolean;
  readonly detail: string;
  /** What to do when it is not ok. */
  readonly nextStep: string;
}

export interface Preflight {
  readonly env: Readonly<Record<string, string | undefined>>;
  readonly uid: number;
}

const listFile = join(import.meta.dirname, "../../../../scripts/host-packages.json");

/** True when VMs are only simulated: for a look at the platform without root and hypervisor. */
export function isMemoryOnly(env: Preflight["env"]): boolean {
  return env["UNKEY_METALD_HYPERVISOR"] === "memory";
}

/** What a platform on this host needs, each with what to do about it. */
export function checkHost({ env, uid }: Preflight): Check[] {
  const memoryOnly = isMemoryOnly(env);
  const programs = (JSON.parse(readFileSync(listFile, "utf8")) as { runtime: HostProgram[] }).runtime;
  const needed = memoryOnly ? [] : programs; // without guests, Node does all that is done
  return [
    {
      name: "Linux",
      ok: process.platform === "linux" && ["x64", "arm64"].includes(process.arch),
      detail: `${process.platform} ${process.arch}`,
      nextStep: "Use a Linux host with an x86-64 or arm64 processor.",
    },
    {
      name: "root",
      ok: uid === 0 || memoryOnly,
      detail: "network namespaces, taps, nftables, cgroups and a user id for each VM need it",
      nextStep: "Run it as root: sudo unkey dev up. To look around without VMs: UNKEY_METALD_HYPERVISOR=memory.",
    },
    ...needed.map((program) => ({
      name: program.binary,
      ok: isPresent(program, env["PATH"] ?? ""),
      detail: `${program.why} (package ${program.package})`,
      nextStep: `apt-get install ${program.package}`,
    })),
  ];
}

/** Throws with exit code 2 when this host lacks something. */
export function requireHost(preflight: Preflight): void {
  const missing = checkHost(preflight).filter(({ ok }) => !ok);
  const [first] = missing;
  if (first === undefined) return;
  const programs = missing.filter(({ nextStep }) => nextStep.startsWith("apt-get"));
  if (programs.length < missing.length) {
    throw new CliFailure(`${first.name} is needed: ${first.detail}`, {
      nextStep: first.nextStep,
      exitCode: exitCodes.usage,
    });
  }
  const packages = programs.map(({ nextStep }) => nextStep.split(" ").at(-1));
  throw new CliFailure(
    `${programs.map(({ name }) => name).join(", ")} ${programs.length === 1 ? "is" : "are"} missing on this host`,
    {
      nextStep: `apt-get install ${packages.join(" ")}`,
      exitCode: exitCodes.usage,
      evidence: programs.map(({ name, detail }) => `${name} ${detail}`),
    },
  );
}

function isPresent({ binary, static: mustBeStatic = false }: HostProgram, path: string): boolean {
  const found = findOnPath(binary, path);
  return found !== undefined && (!mustBeStatic || isStaticElf(readFileSync(found)));
}

function findOnPath(binary: string, path: string): string | undefined {
  return [...path.split(":"), "/usr/sbin", "/sbin"]
    .map((dir) => join(dir, binary))
    .find((file) => {
      try {
        accessSync(file, constants.X_OK);
        return true;
      } catch {
        return false;
      }
    });
}
