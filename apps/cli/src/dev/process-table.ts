import { readdirSync, readFileSync, readlinkSync } from "node:fs";
import { isErrno } from "@unkey/base";

/** Names one process for ever: a pid is used again, a pid with its start time is not. */
export interface ProcessIdentity {
  readonly pid: number;
  /** Field 22 of /proc/<pid>/stat: clock ticks between the host's boot and the process's start. */
  readonly startTicks: string;
}

/** The process that has `pid` now, or undefined when there is none or it has ended and waits to be reaped. */
export function processByPid(pid: number): ProcessIdentity | undefined {
  const stat = readProc(`${pid}/stat`);
  // The second field, the name, may hold spaces and parentheses; everything after the last one is numbers (proc(5)).
  const fields = stat?.slice(stat.lastIndexOf(")") + 2).split(" ") ?? [];
  const [state, startTicks] = [fields[0], fields[19]];
  if (state === undefined || startTicks === undefined || state === "X") return undefined;
  // A process is a zombie as soon as its first thread is; files and locks go with its last.
  if (state === "Z" && threads(pid) <= 1) return undefined;
  return { pid, startTicks };
}

export function isAlive({ pid, startTicks }: ProcessIdentity): boolean {
  return processByPid(pid)?.startTicks === startTicks;
}

/** Sends `signal` to that very process; false when it is gone. */
export function signalProcess(identity: ProcessIdentity, signal: NodeJS.Signals): boolean {
  if (!isAlive(identity)) return false;
  try {
    process.kill(identity.pid, signal);
    return true;
  } catch (error) {
    if (isErrno(error, "ESRCH")) return false;
    throw error;
  }
}

/**
 * Processes whose command line has `argument` and whose environment has `variable` (`NAME=value`). It asks the kernel
 * rather than a file of ours, so a process that was started just before a crash is found too.
 */
export function findProcesses(argument: string, variable: string): ProcessIdentity[] {
  return pids().flatMap((pid) => {
    if (!readProc(`${pid}/cmdline`)?.split("\0").includes(argument)) return [];
    if (!readProc(`${pid}/environ`)?.split("\0").includes(variable)) return [];
    return processByPid(pid) ?? [];
  });
}

/** A TCP port of this host that somebody listens on. */
export interface Listener {
  readonly port: number;
  /** Such as `nginx (pid 123)`; undefined when this user may not know. */
  readonly owner: string | undefined;
}

/** Those of `ports` that cannot be bound on loopback because a process listens there, or on every address. */
export function listenersOn(ports: readonly number[]): Listener[] {
  const inodes = new Map<number, string>();
  for (const table of ["net/tcp", "net/tcp6"]) {
    for (const line of (readProc(table) ?? "").split("\n").slice(1)) {
      // sl local_address rem_address st … inode; 0A is LISTEN (proc_pid_net(5)).
      const [, local = "", , state, , , , , , inode = ""] = line.trim().split(/\s+/);
      const [address = "", port = ""] = local.split(":");
      if (state === "0A" && blocksLoopback(address)) inodes.set(Number.parseInt(port, 16), inode);
    }
  }
  return ports.flatMap((port) => {
    const inode = inodes.get(port);
    return inode === undefined ? [] : [{ port, owner: ownerOf(inode) }];
  });
}

/** Hexadecimal words in host order: 127.0.0.1, 0.0.0.0, ::, ::1 and ::ffff:127.0.0.1. */
function blocksLoopback(address: string): boolean {
  return /^(?:0100007F|0{8}|0{32}|0{24}01000000|0{16}FFFF00000100007F)$/i.test(address);
}

function ownerOf(inode: string): string | undefined {
  const socket = `socket:[${inode}]`;
  for (const pid of pids()) {
    if (!linksOf(`/proc/${pid}/fd`).includes(socket)) continue;
    const name = readProc(`${pid}/comm`)?.trim() ?? "a process";
    return `${name} (pid ${pid})`;
  }
  return undefined;
}

function linksOf(dir: string): string[] {
  try {
    return readdirSync(dir).map((fd) => {
      try {
        return readlinkSync(`${dir}/${fd}`);
      } catch {
        return ""; // closed meanwhile
      }
    });
  } catch {
    return []; // ended meanwhile, or of another user
  }
}

function threads(pid: number): number {
  try {
    return readdirSync(`/proc/${pid}/task`).length;
  } catch {
    return 0;
  }
}

function pids(): number[] {
  return readdirSync("/proc")
    .filter((name) => /^\d+$/.test(name))
    .map(Number);
}

function readProc(path: string): string | undefined {
  try {
    return readFileSync(`/proc/${path}`, "latin1");
  } catch {
    return undefined;
  }
}
