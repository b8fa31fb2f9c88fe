/** What a process may use beside its cgroup; each bound is the kernel's own (getrlimit(2)). */
export interface ProcessLimits {
  /** No file that it writes grows beyond this. */
  readonly fileBytes: number;
  readonly openFiles: number;
  /** Processes and threads of its user: what holds where the host has no cgroups. */
  readonly processes: number;
}

/** How much of the confinement this host allows. */
export type Confinement =
  /** Own user, own namespaces, a root that holds only programs and the process's directory. */
  | "namespaces"
  /** Own user; sees the host's files as that user. */
  | "user"
  /** builderd's own user, without its rights if it has any: for hosts on which builderd is not root. */
  | "none";

export interface LaunchPlan {
  readonly confinement: Confinement;
  readonly cgroupProcsPaths: readonly string[];
  readonly limits: ProcessLimits;
  /** uid and gid. */
  readonly uid: number;
  /** Of the process: `in` is not to be changed, `out` is where it writes. */
  readonly directory: string;
  /** An existing empty directory on which the private root is mounted; nobody else sees that. */
  readonly mountPoint: string;
  /** Path of the mount table for `namespaces`, see `mountTable`. */
  readonly mountTablePath: string;
}

/** Where a process finds its directory when it has a root of its own. */
export const directoryInside = "/job";

/**
 * The command that confines itself step by step and then becomes `program`: it joins the cgroups while it is still ours, leaves
 * the namespaces, closes the door to the host's files, drops files and rights, and executes. It dies with its parent. Words
 * reach the shell as arguments, never as text.
 */
export function launchCommand(program: readonly string[], plan: LaunchPlan): [command: string, ...args: string[]] {
  const { confinement, cgroupProcsPaths, uid } = plan;
  const ids = [`--reuid=${uid}`, `--regid=${uid}`, "--clear-groups"];
  const rights = ["--inh-caps=-all", "--bounding-set=-all", "--no-new-privs", "--pdeathsig=KILL", "--"];
  const [first, ...others] = bounds(plan.limits, confinement === "none" ? [] : [`--nproc=${plan.limits.processes}`]);
  const confined = [first, ...others, "setpriv", ...ids, ...rights];
  switch (confinement) {
    case "none":
      return [first, ...others, "setpriv", "--no-new-privs", "--pdeathsig=KILL", "--", ...program];
    case "user":
      return [...shell(joinScript), ...cgroupProcsPaths, "--", ...confined, ...program];
    case "namespaces":
      return [
        ...shell(joinScript),
        ...cgroupProcsPaths,
        "--",
        // The process below is the first of its pid namespace: when it ends, or this parent does, nothing of it is left.
        "setpriv",
        "--pdeathsig=KILL",
        "unshare",
        "--mount",
        "--net",
        "--ipc",
        "--uts",
        "--pid",
        "--fork",
        "--kill-child=SIGKILL",
        ...shell(rootScript),
        plan.mountTablePath,
        plan.mountPoint,
        ...confined,
        "env",
        `--chdir=${directoryInside}`,
        ...program,
      ];
  }
}

const joinScript = 'set -e; while [ "$1" != -- ]; do echo $$ >"$1"; shift; done; shift; exec "$@"';

function bounds(
  { fileBytes, openFiles }: ProcessLimits,
  more: readonly string[],
): [command: string, ...args: string[]] {
  // A core file would hold what other tenants' layers may not show.
  return ["prlimit", "--core=0", `--fsize=${fileBytes}`, `--nofile=${openFiles}`, ...more, "--"];
}

// -n: mount(8) would note each mount in the host's /run/mount/utab, which nobody takes out again when the namespace goes.
const rootScript =
  'set -e; mount -n -a -T "$1"; cd "$2"; root=$2; shift 2; ' +
  "for name in bin sbin lib lib32 lib64 libx32; do " +
  'if [ -L /$name ]; then ln -s "$(readlink /$name)" $name; fi; done; ' +
  ": >dev/null; mount -n --bind /dev/null dev/null; " +
  'mount -n -o remount,ro "$root"; exec chroot "$root" "$@"';

/**
 * fstab(5) of the private root: programs and libraries, the folders that the program is made of, its own directory, a view of its
 * own pid namespace. Nothing but `out` can be written, nothing there can be executed.
 */
export function mountTable(
  plan: Pick<LaunchPlan, "directory" | "mountPoint">,
  programFolders: readonly string[],
  systemFolders: readonly string[],
): string {
  const { directory, mountPoint } = plan;
  const readOnly = "bind,ro,nosuid,nodev,x-mount.mkdir";
  const lines = [
    ["tmpfs", mountPoint, "tmpfs", "mode=0755,size=256k,nr_inodes=1k,nosuid"],
    ...[...systemFolders, ...programFolders].map((path) => [path, mountPoint + path, "none", readOnly]),
    [directory, mountPoint + directoryInside, "none", "bind,nosuid,nodev,noexec,x-mount.mkdir"],
    [`${directory}/in`, `${mountPoint}${directoryInside}/in`, "none", "bind,ro,nosuid,nodev,noexec"],
    ["tmpfs", `${mountPoint}/dev`, "tmpfs", "mode=0755,size=16k,nr_inodes=16,nosuid,noexec,x-mount.mkdir"],
    ["proc", `${mountPoint}/proc`, "proc", "nosuid,nodev,noexec,x-mount.mkdir"],
  ];
  return lines.map((fields) => `${fields.map(escaped).join(" ")} 0 0\n`).join("");
}

/** White space and backslashes in a path, as fstab(5) and getmntent(3) write them. */
function escaped(text: string): string {
  return text.replaceAll(/[\s\\#]/g, (character) => `\\${character.charCodeAt(0).toString(8).padStart(3, "0")}`);
}

function shell(script: string): [command: string, ...args: string[]] {
  return ["/bin/sh", "-c", script, "build-launch"];
}
