import { statSync } from "node:fs";
import { mib } from "@unkey/base";
import type { VmLaunch } from "./hypervisor.ts";

/** A device node that the monitor opens. */
export interface NeededDevice {
  readonly path: "/dev/kvm" | "/dev/net/tun";
  readonly major: number;
  readonly minor: number;
}

export const kvmDevice: NeededDevice = { path: "/dev/kvm", major: 10, minor: 232 };
export const tunDevice: NeededDevice = { path: "/dev/net/tun", major: 10, minor: 200 };

export interface LaunchPlan {
  readonly launch: VmLaunch;
  readonly pidFile: string;
  /** An existing empty folder on which a private file system may be mounted, seen by the monitor alone. */
  readonly deviceDir: string;
  /** Of `kvmDevice` and `tunDevice`, those that the monitor opens and its user may not. */
  readonly privateDevices: readonly NeededDevice[];
  /** No file that the monitor writes grows beyond this: the bound on logs that nobody rotates. */
  readonly maxFileBytes: number;
}

/** The least bound on files; a guest's console in its whole life stays far below. */
export const minFileLimitBytes = 256 * mib;

/**
 * The command that confines itself step by step and then becomes `monitor`, keeping its pid: it notes the pid, joins the
 * cgroups, enters the network namespace, gets device nodes of its own, drops core files and every right, and executes.
 * Words reach the shell as arguments, never as text.
 */
export function launchCommand(monitor: readonly string[], plan: LaunchPlan): [program: string, ...args: string[]] {
  const { netns, cgroupProcsPaths = [], user } = plan.launch;
  // noclobber: the folder belongs to the monitor's user, so a link that lies there must not be followed.
  const join =
    'set -eC; echo $$ >"$1"; set +C; shift; while [ "$1" != -- ]; do echo $$ >"$1"; shift; done; shift; exec "$@"';
  const [program, ...script] = shell(join);
  const rest = [
    plan.pidFile,
    ...cgroupProcsPaths,
    "--",
    ...(netns === undefined ? [] : ["ip", "netns", "exec", netns]),
    ...devices(plan, netns !== undefined),
    "prlimit",
    "--core=0", // a core file would hold the guest's memory
    `--fsize=${plan.maxFileBytes}`,
    "--",
    ...(user === undefined ? [] : withoutRights(user)),
    ...monitor,
  ];
  return [program, ...script, ...rest];
}

function withoutRights({ uid, gid }: NonNullable<VmLaunch["user"]>): string[] {
  const ids = [`--reuid=${uid}`, `--regid=${gid}`, "--clear-groups"];
  return ["setpriv", ...ids, "--inh-caps=-all", "--bounding-set=-all", "--no-new-privs", "--"];
}

/** Of `needed`, the devices that a process with the ids of `launch.user` could not open for reading and writing. */
export function missingDevices(needed: readonly NeededDevice[], launch: VmLaunch): NeededDevice[] {
  const { user } = launch;
  if (user === undefined || user.uid === 0) return [];
  return needed.filter(({ path }) => {
    const node = statSync(path, { throwIfNoEntry: false });
    if (node === undefined) return false; // the monitor says so itself
    const groupBits = node.gid === user.gid ? node.mode >> 3 : node.mode;
    const bits = node.uid === user.uid ? node.mode >> 6 : groupBits;
    return (bits & 6) !== 6;
  });
}

/** Private nodes owned by the monitor's user, in a mount namespace of its own: the host's nodes stay as strict as they are. */
function devices({ privateDevices, deviceDir, launch }: LaunchPlan, hasOwnMounts: boolean): string[] {
  if (privateDevices.length === 0 || launch.user === undefined) return [];
  const { uid, gid } = launch.user;
  const mount =
    'set -e; dir=$1 owner=$2; shift 2; mount -t tmpfs -o mode=0711,size=64k,noexec,nosuid tmpfs "$dir"; ' +
    'while [ "$1" != -- ]; do mknod -m 600 "$dir/$3" c "$2" "$3"; chown "$owner" "$dir/$3"; ' +
    'mount --bind "$dir/$3" "$1"; shift 3; done; shift; exec "$@"';
  return [
    // `ip netns exec` has made a mount namespace already.
    ...(hasOwnMounts ? [] : ["unshare", "--mount", "--propagation=private"]),
    ...shell(mount),
    deviceDir,
    `${uid}:${gid}`,
    ...privateDevices.flatMap(({ path, major, minor }) => [path, String(major), String(minor)]),
    "--",
  ];
}

function shell(script: string): [program: string, ...args: string[]] {
  return ["/bin/sh", "-c", script, "vm-launch"];
}
