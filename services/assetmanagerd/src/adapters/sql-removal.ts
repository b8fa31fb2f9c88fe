import type { Sql } from "@unkey/sql";
import type { Digest } from "../domain/asset.ts";
import type { RemovalCatalog, Unused } from "../ports.ts";

/** Only when count and assets both say that nobody is left do the bytes go; collection reports where they disagree. */
const unused = "refs <= 0 AND NOT EXISTS (SELECT 1 FROM assets a WHERE a.blob_id = blobs.blob_id)";
const among = "digest IN (SELECT value FROM json_each(?))";

export class SqlRemoval implements RemovalCatalog {
  readonly #sql: Sql;

  constructor(sql: Sql) {
    this.#sql = sql;
  }

  async unused(limit: number): Promise<Unused[]> {
    const rows = await this.#sql.query<{ digest: Digest; size_bytes: number }>(
      `SELECT digest, size_bytes FROM blobs WHERE ${unused} ORDER BY blob_id LIMIT ?`,
      [limit],
    );
    // What is read may have been written by a pass that does not wait for the disk.
    if (rows.length > 0) await this.#sql.settle();
    return rows.map((row) => ({ digest: row.digest, sizeBytes: row.size_bytes }));
  }

  async stillUnused(digests: readonly Digest[]): Promise<Digest[]> {
    const sql = `SELECT digest FROM blobs WHERE ${among} AND ${unused}`;
    return (await this.#sql.query<{ digest: Digest }>(sql, [JSON.stringify(digests)])).map(({ digest }) => digest);
  }

  async forget(digests: readonly Digest[]): Promise<void> {
    const sql = `DELETE FROM blobs WHERE ${among} AND ${unused}`;
    // After a power failure they are removed once more.
    await this.#sql.transaction((tx) => tx.run(sql, [JSON.stringify(digests)]), { durability: "process" });
  }
}
