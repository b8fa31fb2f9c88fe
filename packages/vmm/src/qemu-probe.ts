import { type ChildProcess, execFile, spawn } from "node:child_process";
import { accessSync, closeSync, constants, openSync, readFileSync, rmSync } from "node:fs";
import { mib, ServiceError } from "@unkey/base";
import type { ProbeRequest, ProbeResult } from "./hypervisor.ts";
import { machineArguments } from "./qemu-arguments.ts";

/** A guest kernel under KVM reaches its init in well under a second. */
const trialDeadlineMs = 10_000;
const trialMemoryBytes = 128 * mib;
/** What our init prints when it is told that it is on trial. */
const trialMarker = "unkey-probe-ok";
const maxWordsLength = 120;

/**
 * Which accelerator guests can have on this host. That /dev/kvm opens does not say that a guest runs: only a guest that
 * ran says so, hence the trial boot.
 */
export async function probeQemu(program: string, request: ProbeRequest, signal: AbortSignal): Promise<ProbeResult> {
  const hypervisorVersion = await readVersion(program, signal);
  const obstacle = kvmObstacle() ?? (await tryKvm(program, request, signal));
  return obstacle === undefined
    ? { accelerator: "kvm", hypervisorVersion }
    : { accelerator: "tcg", hypervisorVersion, fallbackReason: obstacle };
}

/** Runs `qemu --version`; throws HYPERVISOR_UNAVAILABLE when there is no such program. */
async function readVersion(program: string, signal: AbortSignal): Promise<string> {
  const { promise, resolve, reject } = Promise.withResolvers<string>();
  execFile(
    program,
    ["--version"],
    { signal, env: { PATH: process.env["PATH"] ?? "", LC_ALL: "C" } },
    (error, stdout) => {
      const version = /version (\d+(?:\.\d+)+)/.exec(stdout)?.[1];
      if (signal.aborted) reject(signal.reason as Error);
      else if (version !== undefined) resolve(version);
      else
        reject(new ServiceError("HYPERVISOR_UNAVAILABLE", `${program} cannot be run on this host`, { cause: error }));
    },
  );
  return promise;
}

function kvmObstacle(): string | undefined {
  if (process.arch !== "x64") return `guests are x86-64 and this host is ${process.arch}`;
  try {
    accessSync("/dev/kvm", constants.R_OK | constants.W_OK);
    return undefined;
  } catch (error) {
    const { code } = error as NodeJS.ErrnoException;
    if (code === "ENOENT")
      return "there is no /dev/kvm: the processor or an outer hypervisor does not offer virtualization";
    return `/dev/kvm cannot be opened by this user (${code})`;
  }
}

/** Boots our kernel and init under KVM and returns why that did not work, undefined when it did. */
async function tryKvm(
  program: string,
  { dir, kernelPath, initrdPath }: ProbeRequest,
  signal: AbortSignal,
): Promise<string | undefined> {
  const consoleLog = `${dir}/probe-console.log`;
  const monitorLog = `${dir}/probe-monitor.log`;
  const machine = machineArguments(
    {
      accelerator: "kvm",
      memoryBytes: trialMemoryBytes,
      vcpuCount: 1,
      kernelPath,
      initrdPath,
      tscKhz: undefined,
      kernelArguments: ["unkey.probe=1"],
    },
    consoleLog,
  );
  const log = openSync(monitorLog, "w", 0o600);
  try {
    const child = spawn(program, [...machine, "-no-reboot"], { cwd: dir, stdio: ["ignore", log, log] });
    const end = await endOf(child, signal);
    signal.throwIfAborted();
    if (readText(consoleLog).includes(trialMarker)) return undefined;
    const words = (readText(monitorLog).trim().split("\n")[0] ?? "")
      .replace(/^\S*qemu\S*: /, "")
      .slice(0, maxWordsLength);
    if (end === "deadline") return `a trial guest under KVM did not reach its init within ${trialDeadlineMs / 1000} s`;
    return `QEMU could not run a trial guest under KVM (${end})${words === "" ? "" : `: ${words}`}`;
  } finally {
    closeSync(log);
    rmSync(consoleLog, { force: true });
    rmSync(monitorLog, { force: true });
  }
}

/** Waits for the trial's end, at most its deadline, and leaves no process behind. */
async function endOf(child: ChildProcess, signal: AbortSignal): Promise<string> {
  const { promise, resolve } = Promise.withResolvers<string>();
  const limit = AbortSignal.any([signal, AbortSignal.timeout(trialDeadlineMs)]);
  let isLate = false;
  const kill = (): void => {
    isLate = true;
    child.kill("SIGKILL");
  };
  limit.addEventListener("abort", kill, { once: true });
  child.once("error", (error) => resolve(error.message));
  child.once("exit", (code, killedBy) => resolve(isLate ? "deadline" : killedBy === null ? `exit ${code}` : killedBy));
  try {
    return await promise;
  } finally {
    limit.removeEventListener("abort", kill);
  }
}

function readText(path: string): string {
  try {
    return readFileSync(path, "latin1");
  } catch {
    return "";
  }
}
