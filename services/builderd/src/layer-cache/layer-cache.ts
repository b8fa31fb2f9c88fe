import { randomUUID } from "node:crypto";
import { chmod, chown, link, lstat, mkdir, open, readdir, readFile, rename, rm } from "node:fs/promises";
import { join } from "node:path";
import { type Clock, isErrno, type TenantId } from "@unkey/base";
import type { Logger } from "@unkey/daemon";
import type { ImageSource, ResolvedImage } from "@unkey/oci";
import { openSqlite, type Sql } from "@unkey/sql";
import { misbehaved } from "../worker/misbehaved.ts";
import { migrations } from "./schema.ts";

export interface LayerCacheOptions {
  /** Its own; on the file system of the builds' scratch directory, as layers are linked and renamed between the two. */
  readonly directory: string;
  /** Of the layers' files together; 0 keeps nothing. */
  readonly maxBytes: number;
  /** Of layer directories: others are forgotten. */
  readonly format: number;
  readonly clock: Clock;
  readonly log: Logger;
}

/** A layer as an image names it. */
export type CachedLayer = ResolvedImage["layers"][number];

/** Names a layer that is here. */
export interface LayerKey {
  readonly digest: string;
  readonly diffId: string;
}

/** Who asks, and where that tenant's image is. */
export interface LayerUser {
  readonly tenantId: TenantId;
  readonly source: Pick<ImageSource, "registry" | "canRead">;
}

interface LayerRow {
  readonly digest: string;
  readonly diff_id: string;
  readonly directory: string;
  readonly size_bytes: number;
  readonly content_digest: string | null;
}

/** What a layer directory holds, and nothing else. */
const layerFiles = ["index", "content", "tails"] as const;
/** A power failure may take what is known of layers: they are fetched anew. */
const forProcess = { durability: "process" } as const;
const addProof = "INSERT OR IGNORE INTO proof (tenant_id, digest) VALUES (?, ?)";
const bootIdPath = "/proc/sys/kernel/random/boot_id";

/**
 * Unpacked layers by the digest of the layer as it travels, for all tenants. A tenant gets one only when it has proved that it can
 * read the layer: it has fetched or uploaded those bytes before, or its login may read them now in the registry that they came
 * from. What is handed out are hard links, so a layer that goes stays for the builds that have it. A directory comes before its row
 * and goes after it; what has no row is removed at the start.
 */
export class LayerCache implements AsyncDisposable {
  readonly #options: LayerCacheOptions;
  readonly #sql: Sql & AsyncDisposable;

  private constructor(options: LayerCacheOptions, sql: Sql & AsyncDisposable) {
    this.#options = options;
    this.#sql = sql;
  }

  static async open(options: LayerCacheOptions): Promise<LayerCache> {
    await mkdir(options.directory, { recursive: true, mode: 0o700 });
    const cache = new LayerCache(options, await openSqlite({ path: join(options.directory, "layers.db"), migrations }));
    await cache.#recover();
    await cache.#evict("");
    return cache;
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.#sql[Symbol.asyncDispose]();
  }

  /** Links the layer's files into `into`, which is made; false when it is not here, or not this tenant's to have. */
  async take(layer: CachedLayer, user: LayerUser, into: string, signal: AbortSignal): Promise<boolean> {
    const { digest } = layer.descriptor;
    const row = await this.#find(digest, layer.diffId);
    if (row === undefined || !(await this.#mayHave(layer, user, signal))) return false;
    try {
      await this.#link(row.directory, into);
    } catch (error) {
      await rm(into, { recursive: true, force: true });
      if (!isErrno(error, "ENOENT")) throw error;
      await this.#forget(row); // evicted meanwhile, or damaged by hand
      return false;
    }
    const nowMs = this.#options.clock.nowMs();
    await this.#sql.transaction(async (tx) => {
      await tx.run("UPDATE layer SET last_used_ms = ? WHERE directory = ?", [nowMs, row.directory]);
      await tx.run(addProof, [user.tenantId, digest]);
    }, forProcess);
    return true;
  }

  /**
   * Takes a complete layer directory that was made from bytes of the descriptor's digest, which the user's source gave, and whose
   * maker runs no more; puts it, or links to it, at `into`. Throws when it holds anything but a layer's files.
   */
  async put(layer: CachedLayer, user: LayerUser, directory: string, into: string): Promise<void> {
    const { maxBytes, clock, format } = this.#options;
    const sizeBytes = await takeOver(directory);
    if (sizeBytes > maxBytes) {
      await rename(directory, into);
      return;
    }
    const name = `layer-${randomUUID()}`;
    await rename(directory, join(this.#options.directory, name));
    await this.#link(name, into);
    const { digest } = layer.descriptor;
    const isNew = await this.#sql.transaction(async (tx) => {
      const added = await tx.run(
        `INSERT OR IGNORE INTO layer (digest, diff_id, directory, format, size_bytes, last_used_ms)
         VALUES (?, ?, ?, ?, ?, ?)`,
        [digest, layer.diffId, name, format, sizeBytes, clock.nowMs()],
      );
      await tx.run(addProof, [user.tenantId, digest]);
      if (user.source.registry !== undefined) {
        await tx.run("INSERT OR IGNORE INTO origin (registry, digest) VALUES (?, ?)", [user.source.registry, digest]);
      }
      return added.changes > 0;
    }, forProcess);
    if (!isNew)
      await this.#remove(name); // another build was faster
    else await this.#evict(name);
  }

  /** The digest of a layer's `content`, when somebody has counted it since the layer came. */
  async contentDigest({ digest, diffId }: LayerKey): Promise<string | undefined> {
    return (await this.#find(digest, diffId))?.content_digest ?? undefined;
  }

  async noteContentDigest({ digest, diffId }: LayerKey, contentDigest: string): Promise<void> {
    const change = "UPDATE layer SET content_digest = ? WHERE digest = ? AND diff_id = ?";
    await this.#sql.transaction((tx) => tx.run(change, [contentDigest, digest, diffId]), forProcess);
  }

  /** Drops layers that turned out to be damaged. */
  async forget(layers: readonly CachedLayer[]): Promise<void> {
    for (const { descriptor, diffId } of layers) {
      const row = await this.#find(descriptor.digest, diffId);
      if (row !== undefined) await this.#forget(row);
    }
  }

  /** Makes what was put since the last pass outlast a loss of power; until then a reboot forgets it. */
  async settle(signal: AbortSignal): Promise<void> {
    const rows = await this.#sql.query<LayerRow>("SELECT * FROM layer WHERE durable = 0", []);
    for (const { directory } of rows) {
      signal.throwIfAborted();
      try {
        for (const file of [...layerFiles, "."]) await synced(join(this.#options.directory, directory, file));
        await this.#sql.run("UPDATE layer SET durable = 1 WHERE directory = ?", [directory]);
      } catch (error) {
        if (!isErrno(error, "ENOENT")) throw error; // evicted meanwhile
      }
    }
  }

  async #find(digest: string, diffId: string): Promise<LayerRow | undefined> {
    return this.#sql.one<LayerRow>("SELECT * FROM layer WHERE digest = ? AND diff_id = ?", [digest, diffId]);
  }

  async #mayHave({ descriptor }: CachedLayer, { tenantId, source }: LayerUser, signal: AbortSignal): Promise<boolean> {
    const { digest } = descriptor;
    const proved = await this.#sql.one("SELECT 1 FROM proof WHERE tenant_id = ? AND digest = ?", [tenantId, digest]);
    if (proved !== undefined) return true;
    const { registry } = source;
    if (registry !== undefined) {
      // Whoever runs a registry can let it claim any digest. Only one that has given us these bytes knows who may read them.
      const known = await this.#sql.one("SELECT 1 FROM origin WHERE registry = ? AND digest = ?", [registry, digest]);
      if (known === undefined) return false;
    }
    try {
      return await source.canRead(descriptor, signal);
    } catch (error) {
      signal.throwIfAborted();
      this.#options.log.debug("a registry did not say who may read a layer", { digest, error });
      return false; // fetching it tells the caller what is wrong
    }
  }

  async #link(name: string, into: string): Promise<void> {
    await mkdir(into, { mode: 0o755 });
    for (const file of layerFiles) await link(join(this.#options.directory, name, file), join(into, file));
  }

  /** Removes what was used longest ago until the rest fits; `newest` is the last to go. */
  async #evict(newest: string): Promise<void> {
    const { maxBytes, log } = this.#options;
    for (;;) {
      const total = await this.#sql.one<{ bytes: number }>(
        "SELECT coalesce(sum(size_bytes), 0) AS bytes FROM layer",
        [],
      );
      if ((total?.bytes ?? 0) <= maxBytes) return;
      const oldest = await this.#sql.one<LayerRow>(
        "SELECT * FROM layer ORDER BY directory = ?, last_used_ms, directory LIMIT 1",
        [newest],
      );
      if (oldest === undefined) return;
      await this.#forget(oldest);
      log.debug("a cached layer gave way", { digest: oldest.digest, bytes: oldest.size_bytes });
    }
  }

  async #forget({ directory }: LayerRow): Promise<void> {
    await this.#sql.transaction(async (tx) => {
      await tx.run("DELETE FROM layer WHERE directory = ?", [directory]);
      for (const table of ["proof", "origin"]) {
        await tx.run(`DELETE FROM ${table} WHERE digest NOT IN (SELECT digest FROM layer)`, []);
      }
    });
    await this.#remove(directory);
  }

  async #remove(name: string): Promise<void> {
    await rm(join(this.#options.directory, name), { recursive: true, force: true });
  }

  /** Brings rows and directories together, whatever the last process was at when it ended. */
  async #recover(): Promise<void> {
    const { directory, format, log } = this.#options;
    const bootId = (await readFile(bootIdPath, "utf8")).trim();
    const before = await this.#sql.one<{ value: string }>("SELECT value FROM fact WHERE name = 'boot'", []);
    const rebooted = before !== undefined && before.value !== bootId;
    const rows = await this.#sql.query<LayerRow & { format: number; durable: number }>("SELECT * FROM layer", []);
    const kept = new Set<string>();
    for (const row of rows) {
      const whole =
        row.format === format &&
        (row.durable === 1 || !rebooted) &&
        (await sizeOf(join(directory, row.directory)).catch(() => -1)) === row.size_bytes;
      if (whole) kept.add(row.directory);
      else await this.#forget(row);
    }
    await this.#sql.run("INSERT OR REPLACE INTO fact (name, value) VALUES ('boot', ?)", [bootId]);
    for (const entry of await readdir(directory, { withFileTypes: true })) {
      if (entry.isDirectory() && !kept.has(entry.name)) await this.#remove(entry.name);
    }
    if (kept.size < rows.length) log.info("cached layers forgotten", { kept: kept.size, of: rows.length });
  }
}

async function sizeOf(directory: string): Promise<number> {
  const sizes = await Promise.all(layerFiles.map(async (file) => (await lstat(join(directory, file))).size));
  return sizes.reduce((sum, size) => sum + size, 0);
}

/** Makes a directory that a worker has filled ours, so that no worker can change it; answers its size. */
async function takeOver(directory: string): Promise<number> {
  const names = await readdir(directory);
  if (names.length !== layerFiles.length || !layerFiles.every((file) => names.includes(file))) {
    const shown = JSON.stringify(names.slice(0, 4).map((name) => name.slice(0, 100)));
    throw misbehaved(`has left ${shown} where it was to leave ${layerFiles.join(", ")}`);
  }
  const own = process.getuid?.() ?? 0;
  const group = process.getgid?.() ?? 0;
  let sizeBytes = 0;
  for (const file of layerFiles) {
    const path = join(directory, file);
    const found = await lstat(path);
    if (!found.isFile() || found.nlink !== 1)
      throw misbehaved(`has left ${file} as something else than a file of its own`);
    await chown(path, own, group);
    await chmod(path, 0o444);
    sizeBytes += found.size;
  }
  await chown(directory, own, group);
  await chmod(directory, 0o755);
  return sizeBytes;
}

async function synced(path: string): Promise<void> {
  await using file = await open(path);
  await file.sync();
}
