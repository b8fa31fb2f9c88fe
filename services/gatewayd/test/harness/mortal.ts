import { ServiceError } from "@unkey/base";
import type { Sql, SqlStatements } from "@unkey/sql";

/**
 * A process that is killed at its n-th contact with the outside: every statement, transaction and call counts before
 * and after its effect. Whatever the dying code still tries has no effect any more.
 */
export class Fate {
  #left: number;
  dead = false;
  count = 0;

  constructor(killAt: number) {
    this.#left = killAt;
  }

  point(): void {
    if (!this.dead) {
      this.count += 1;
      this.#left -= 1;
      if (this.#left !== 0) return;
      this.dead = true;
    }
    throw new ServiceError("INTERNAL", "killed");
  }
}

/** The database as a process sees it that may be killed before or after each use. */
export function mortalSql(sql: Sql, fate: () => Fate): Sql {
  const around = async <T>(body: () => Promise<T>): Promise<T> => {
    const mine = fate();
    mine.point();
    const result = await body();
    mine.point();
    return result;
  };
  return {
    query: <R extends object>(...args: Parameters<SqlStatements["query"]>) => around(() => sql.query<R>(...args)),
    one: <R extends object>(...args: Parameters<SqlStatements["one"]>) => around(() => sql.one<R>(...args)),
    run: (...args) => around(() => sql.run(...args)),
    transaction: (body) => around(() => sql.transaction(body)),
    settle: () => around(() => sql.settle()),
    [Symbol.asyncDispose]: async () => undefined,
  };
}
