import { createHash } from "node:crypto";
import { type Migration, SqlError, type SqlStatements } from "./sql.ts";

/** A transaction that also takes a text of several statements. */
export interface MigrationTarget extends SqlStatements {
  script(sql: string): Promise<void>;
}

function checksum(sql: string): string {
  return createHash("sha256").update(sql).digest("hex");
}

/**
 * Brings the schema up to the last of `migrations`, each step in a transaction of its own with its row in
 * `schema_migration`, so that a crash leaves whole steps. Refuses a step edited after it was applied, and a database
 * newer than the code. Throws SqlError of kind `migration`.
 */
export async function migrate(
  inTransaction: <T>(body: (tx: MigrationTarget) => Promise<T>) => Promise<T>,
  migrations: readonly Migration[],
): Promise<void> {
  migrations.forEach(({ id }, index) => {
    if (id !== index + 1) throw new SqlError("migration", `migration ${id} stands at place ${index + 1}`);
  });
  const applied = await inTransaction(async (tx) => {
    await tx.run(
      "CREATE TABLE IF NOT EXISTS schema_migration (id INTEGER PRIMARY KEY, checksum TEXT NOT NULL, applied_at_ms BIGINT NOT NULL)",
    );
    return tx.query<{ id: number; checksum: string }>("SELECT id, checksum FROM schema_migration ORDER BY id");
  });
  for (const row of applied) {
    const known = migrations[row.id - 1];
    if (known === undefined) {
      throw new SqlError("migration", `the database has migration ${row.id}, which this release does not know`);
    }
    if (checksum(known.sql) !== row.checksum) {
      throw new SqlError("migration", `migration ${row.id} was edited after it had been applied`);
    }
  }
  for (const step of migrations.slice(applied.length)) {
    await inTransaction(async (tx) => {
      await tx.script(step.sql);
      await tx.run("INSERT INTO schema_migration (id, checksum, applied_at_ms) VALUES (?, ?, ?)", [
        step.id,
        checksum(step.sql),
        Date.now(),
      ]);
    }).catch((cause: unknown) => {
      throw new SqlError("migration", `migration ${step.id} failed`, cause);
    });
  }
}
