import assert from "node:assert/strict";
import { suite, test } from "node:test";
import { isSqlError, type Migration, type Sql, type SqlErrorKind } from "./sql.ts";

/** An empty database that can be opened again: the same one each time until `remove`. */
export interface TestDatabase {
  open(migrations: readonly Migration[]): Promise<Sql>;
  remove(): Promise<void>;
}

const schema: Migration[] = [
  {
    id: 1,
    sql: `CREATE TABLE account (id TEXT PRIMARY KEY, cents BIGINT NOT NULL CHECK (cents >= 0));
          CREATE TABLE entry (account_id TEXT NOT NULL REFERENCES account (id), note TEXT, body BLOB);`,
  },
];

const hasKind = (kind: SqlErrorKind) => (error: unknown) => isSqlError(error, kind);

/** What every Sql promises. `create` yields a fresh database for each test. */
export function sqlContract(name: string, create: () => Promise<TestDatabase>): void {
  const withDatabase = (title: string, body: (sql: Sql, database: TestDatabase) => Promise<void>) => {
    test(title, async () => {
      const database = await create();
      try {
        await using sql = await database.open(schema);
        await body(sql, database);
      } finally {
        await database.remove();
      }
    });
  };

  suite(`${name} keeps the sql contract`, () => {
    withDatabase("binds values of every type and reads them back as plain objects", async (sql) => {
      const hostile = "'); DROP TABLE account; --";
      assert.deepEqual(await sql.run("INSERT INTO account (id, cents) VALUES (?, ?)", [hostile, 7]), { changes: 1 });
      await sql.run("INSERT INTO entry (account_id, note, body) VALUES (?, ?, ?)", [hostile, null, Buffer.of(0, 255)]);
      assert.deepEqual(await sql.query("SELECT * FROM account"), [{ id: hostile, cents: 7 }]);
      const entry = await sql.one<{ note: string | null; body: Uint8Array }>("SELECT note, body FROM entry");
      assert.equal(entry?.note, null);
      assert.deepEqual([...(entry?.body ?? [])], [0, 255]);
      assert.equal(await sql.one("SELECT * FROM account WHERE id = ?", ["nobody"]), undefined);
    });

    withDatabase("reads integers beyond 2^53 exactly as bigint, and never rounds them to numbers", async (sql) => {
      const cents = 2n ** 62n + 1n;
      await sql.run("INSERT INTO account (id, cents) VALUES (?, ?)", ["a", cents]);
      const read = "SELECT cents FROM account";
      assert.deepEqual(await sql.one(read, [], { bigint: true }), { cents });
      await assert.rejects(sql.one(read), hasKind("other"));
      assert.deepEqual(await sql.one(read, [], { bigint: true }), { cents });
    });

    withDatabase("names the constraint that refused a row", async (sql) => {
      const insert = "INSERT INTO account (id, cents) VALUES (?, ?)";
      await sql.run(insert, ["a", 1]);
      await assert.rejects(sql.run(insert, ["a", 2]), hasKind("unique"));
      await assert.rejects(sql.run(insert, ["b", -1]), hasKind("check"));
      await assert.rejects(sql.run(insert, ["b", null]), hasKind("not_null"));
      await assert.rejects(sql.run("INSERT INTO entry (account_id) VALUES (?)", ["b"]), hasKind("foreign_key"));
      await assert.rejects(sql.run("INSERT INTO nowhere VALUES (1)"), hasKind("other"));
    });

    withDatabase("commits a transaction whole or not at all", async (sql) => {
      await sql.transaction(async (tx) => {
        await tx.run("INSERT INTO account VALUES ('a', 1)");
        await tx.run("INSERT INTO account VALUES ('b', 2)");
      });
      const failing = sql.transaction(async (tx) => {
        await tx.run("DELETE FROM account");
        throw new Error("on purpose");
      });
      await assert.rejects(failing, /on purpose/);
      const refused = sql.transaction(async (tx) => {
        await tx.run("DELETE FROM account");
        await tx.run("INSERT INTO account VALUES ('c', -1)");
      });
      await assert.rejects(refused, hasKind("check"));
      assert.deepEqual(await sql.query("SELECT id FROM account ORDER BY id"), [{ id: "a" }, { id: "b" }]);
    });

    withDatabase("a transaction that does not wait for the disk is as whole and as visible", async (sql) => {
      const durability = "process";
      await sql.transaction((tx) => tx.run("INSERT INTO account VALUES ('a', 1)"), { durability });
      await assert.rejects(
        sql.transaction((tx) => tx.run("INSERT INTO account VALUES ('b', -1)"), { durability }),
        hasKind("check"),
      );
      await sql.settle();
      await sql.transaction((tx) => tx.run("INSERT INTO account VALUES ('c', 1)"));
      await sql.settle();
      assert.deepEqual(await sql.query("SELECT id FROM account ORDER BY id"), [{ id: "a" }, { id: "c" }]);
    });

    withDatabase("runs transactions one after the other, and lone statements see none half done", async (sql) => {
      await sql.run("INSERT INTO account VALUES ('a', 0)");
      const increment = () =>
        sql.transaction(async (tx) => {
          const row = await tx.one<{ cents: number }>("SELECT cents FROM account");
          await tx.run("UPDATE account SET cents = 1000000");
          await new Promise((resolve) => setImmediate(resolve));
          await tx.run("UPDATE account SET cents = ?", [(row?.cents ?? 0) + 1]);
        });
      const seen: number[] = [];
      const look = async () => {
        const row = await sql.one<{ cents: number }>("SELECT cents FROM account");
        seen.push(row?.cents ?? -1);
      };
      await Promise.all(Array.from({ length: 20 }, (_, i) => (i % 2 === 0 ? increment() : look())));
      assert.deepEqual(seen, [1, 2, 3, 4, 5, 6, 7, 8, 9, 10]);
    });

    withDatabase("refuses what would wait for itself or come too late", async (sql) => {
      let leaked: typeof sql.run | undefined;
      await sql.transaction(async (tx) => {
        leaked = (text) => tx.run(text);
        await assert.rejects(sql.query("SELECT 1"), hasKind("misuse"));
        await assert.rejects(
          sql.transaction(async () => undefined),
          hasKind("misuse"),
        );
      });
      await assert.rejects(async () => leaked?.("DELETE FROM account"), hasKind("misuse"));
      await sql[Symbol.asyncDispose]();
      await sql[Symbol.asyncDispose]();
      await assert.rejects(sql.query("SELECT 1"), hasKind("misuse"));
    });

    withDatabase("keeps what it acknowledged, and applies each migration once", async (sql, database) => {
      await sql.run("INSERT INTO account VALUES ('a', 1)");
      await sql[Symbol.asyncDispose]();
      const extended = [...schema, { id: 2, sql: "ALTER TABLE account ADD COLUMN name TEXT" }];
      for (let i = 0; i < 2; i++) {
        await using again = await database.open(extended);
        assert.deepEqual(await again.query("SELECT * FROM account"), [{ id: "a", cents: 1, name: null }]);
      }
      await assert.rejects(database.open(schema), hasKind("migration")); // older code than the file
      const edited = extended.map((step) => (step.id === 1 ? { id: 1, sql: `${step.sql} ` } : step));
      await assert.rejects(database.open(edited), hasKind("migration"));
    });

    withDatabase("leaves no trace of a migration that failed, and none out of order", async (sql, database) => {
      await sql[Symbol.asyncDispose]();
      const broken = [...schema, { id: 2, sql: "CREATE TABLE extra (id INTEGER); INSERT INTO nowhere VALUES (1)" }];
      await assert.rejects(database.open(broken), hasKind("migration"));
      await assert.rejects(database.open([{ id: 2, sql: "SELECT 1" }]), hasKind("migration"));
      await using again = await database.open([...schema, { id: 2, sql: "CREATE TABLE extra (id INTEGER)" }]);
      assert.deepEqual(await again.query("SELECT * FROM extra"), []);
    });
  });
}
