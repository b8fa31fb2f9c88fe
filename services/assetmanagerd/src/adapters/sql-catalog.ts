import { openSqlite } from "@unkey/sql";
import type { Catalog } from "../ports.ts";
import { migrations } from "./schema.ts";
import { SqlAssets } from "./sql-assets.ts";
import { SqlBlobs } from "./sql-blobs.ts";
import { SqlCollection } from "./sql-collection.ts";
import { SqlKeys } from "./sql-keys.ts";
import { SqlLeases } from "./sql-leases.ts";
import { SqlRemoval } from "./sql-removal.ts";
import { SqlUploads } from "./sql-uploads.ts";

/** Digests are random: what collection and uploads touch lies all over the file. */
const cacheBytes = 64 * 1024 * 1024;

/** The whole catalog in one SQLite file. */
export async function openSqlCatalog(path: string): Promise<Catalog> {
  const sql = await openSqlite({ path, migrations, cacheBytes });
  return {
    assets: new SqlAssets(sql),
    uploads: new SqlUploads(sql),
    leases: new SqlLeases(sql),
    blobs: new SqlBlobs(sql),
    collection: new SqlCollection(sql),
    removal: new SqlRemoval(sql),
    keys: new SqlKeys(sql),
    [Symbol.asyncDispose]: () => sql[Symbol.asyncDispose](),
  };
}
