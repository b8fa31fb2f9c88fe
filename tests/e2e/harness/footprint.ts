import { globSync, readdirSync, readFileSync, readlinkSync } from "node:fs";
import { join } from "node:path";
import { DatabaseSync } from "node:sqlite";

/** By kind of thing, its names in order. */
export type Footprint = Readonly<Record<string, readonly string[]>>;

/**
 * What deployments make on this host and in the databases of the platform at `home`: compare one before with one after.
 * `instance` is what metald calls the platform.
 */
export function footprint(home: string, instance: string): Footprint {
  const name = `unkey-${instance}`;
  const data = join(home, "data");
  return {
    processes: processesOf(home),
    netns: namesIn("/run/netns").filter((each) => each.startsWith(name)),
    // Of the host and, by their other ends, of the namespaces; a tap is gone with its namespace and its process.
    links: namesIn("/sys/class/net").filter((each) => each.includes(instance)),
    cgroups: globSync([`/sys/fs/cgroup/${name}/*/`, `/sys/fs/cgroup/*/${name}/*/`]).toSorted(),
    mounts: readFileSync("/proc/mounts", "utf8")
      .split("\n")
      .filter((line) => line.includes(name) || line.includes(home)),
    staged: namesIn(join(data, "metald/vms")),
    builds: namesIn(join(data, "builderd/scratch")),
    uploads: namesIn(join(data, "builderd/uploads")),
    incoming: namesIn(join(data, "assetmanagerd/blobs/incoming")),
    leases: column(join(data, "assetmanagerd/assets.db"), "SELECT lease_id FROM leases"),
    vms: column(join(data, "metald/metald.db"), "SELECT vm_id FROM vm WHERE state <> 'deleted'"),
    reservations: column(join(data, "metald/metald.db"), "SELECT reservation_id FROM reservation"),
  };
}

/** Processes that work in the platform's folder or name it, other than this one. */
function processesOf(home: string): string[] {
  const found: string[] = [];
  for (const pid of namesIn("/proc")) {
    if (!/^\d+$/.test(pid) || Number(pid) === process.pid) continue;
    try {
      const words = readFileSync(`/proc/${pid}/cmdline`, "utf8").replaceAll("\0", " ");
      if (words.includes(home) || readlinkSync(`/proc/${pid}/cwd`).startsWith(home)) found.push(`${pid} ${words}`);
    } catch {
      // It ended meanwhile.
    }
  }
  return found;
}

function namesIn(directory: string): string[] {
  try {
    return readdirSync(directory).toSorted();
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code === "ENOENT") return [];
    throw error;
  }
}

function column(file: string, query: string): string[] {
  using database = new DatabaseSync(file, { readOnly: true });
  const rows = database.prepare(query).all();
  return rows.map((row) => String(Object.values(row)[0])).toSorted();
}
