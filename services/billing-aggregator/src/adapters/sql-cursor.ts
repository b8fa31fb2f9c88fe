import type { Sql } from "@unkey/sql";
import type { Cursor } from "../ports.ts";

/** The cursor in the inbox's database. */
export class SqlCursor implements Cursor {
  readonly #sql: Sql;

  constructor(sql: Sql) {
    this.#sql = sql;
  }

  async read(): Promise<{ storeId: string; seq: number }> {
    const row = await this.#sql.one<{ store_id: string; projected_seq: number }>(
      "SELECT store_id, projected_seq FROM pipeline WHERE id = 1",
    );
    return { storeId: row?.store_id ?? "", seq: row?.projected_seq ?? 0 };
  }

  async write({ storeId, seq }: { readonly storeId: string; readonly seq: number }): Promise<void> {
    await this.#sql.run("UPDATE pipeline SET store_id = ?, projected_seq = ? WHERE id = 1", [storeId, seq]);
  }
}
