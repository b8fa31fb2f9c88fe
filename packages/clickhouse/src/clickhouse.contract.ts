import assert from "node:assert/strict";
import { after, before, suite, test } from "node:test";
import { type ClickHouse, isClickHouseError } from "./clickhouse.ts";

const refused = (code: number) => (error: unknown) => isClickHouseError(error, "refused") && error.code === code;

/** What every ClickHouse promises. `open` yields one whose default database has no tables of these names. */
export function clickHouseContract(name: string, open: () => Promise<ClickHouse>): void {
  suite(`${name} keeps the clickhouse contract`, () => {
    let clickHouse: ClickHouse;
    before(async () => {
      clickHouse = await open();
      await clickHouse.exec(
        `CREATE TABLE contract (tenant String, n UInt64, integral Int128, note Nullable(String), tags Array(String), rev UInt32)
         ENGINE = ReplacingMergeTree(rev) ORDER BY (tenant, n) SETTINGS non_replicated_deduplication_window = 1000`,
      );
    });
    after(async () => {
      await clickHouse[Symbol.asyncDispose]();
    });

    test("brings back exactly what was inserted, integers beyond 2^53 as strings", async () => {
      const row = {
        tenant: "exact",
        n: 2n ** 64n - 1n,
        integral: 2n ** 127n - 1n,
        note: "tab\tquote'\"back\\slash\n\n; DROP TABLE contract",
        tags: ["a'b", "é\u{1F680}"],
        rev: 1,
      };
      await clickHouse.insert("contract", [row, { ...row, n: 0, note: null }], { dedupToken: "exact" });
      const rows = await clickHouse.query("SELECT * FROM contract WHERE tenant = 'exact' ORDER BY n");
      const read = { ...row, n: "18446744073709551615", integral: "170141183460469231731687303715884105727" };
      assert.deepEqual(rows, [{ ...read, n: "0", note: null }, read]);
    });

    test("inserts a token's rows once", async () => {
      const rows = [1, 2, 3].map((n) => ({ tenant: "once", n, integral: 0, note: null, tags: [], rev: 1 }));
      for (let attempt = 0; attempt < 3; attempt++) {
        await clickHouse.insert("contract", rows, { dedupToken: "it's once\\" });
      }
      const count = "SELECT toUInt32(count()) AS count FROM contract WHERE tenant = 'once'";
      assert.deepEqual(await clickHouse.query(count), [{ count: 3 }]);
      await clickHouse.insert("contract", rows, { dedupToken: "again" });
      assert.deepEqual(await clickHouse.query(count), [{ count: 6 }]);
      assert.deepEqual(await clickHouse.query(count.replace("contract", "contract FINAL")), [{ count: 3 }]);
    });

    test("binds parameters, whatever they hold", async () => {
      const hostile = ["it's", "a\\", "\t\n\r\b\f\0", "' OR 1 = 1 --", "\\N", "{text:String}", "é\u{1F680}", ""];
      for (const text of hostile) {
        const [row] = await clickHouse.query<{ text: string }>("SELECT {text:String} AS text", { text });
        assert.deepEqual(row, { text });
      }
      const sql = "SELECT {big:UInt64} AS big, {small:Int32} AS small";
      assert.deepEqual(await clickHouse.query(sql, { big: 2n ** 64n - 1n, small: -1 }), [
        { big: "18446744073709551615", small: -1 },
      ]);
    });

    test("refuses what is wrong, with ClickHouse's number for it", async () => {
      await assert.rejects(clickHouse.query("SELECT * FROM nowhere"), refused(60));
      await assert.rejects(clickHouse.query("SELEC 1"), refused(62));
      await assert.rejects(clickHouse.exec("DROP TABLE nowhere"), refused(60));
      await assert.rejects(clickHouse.query("SELECT {missing:String}"), refused(456));
      await assert.rejects(
        clickHouse.insert("contract", [{ tenant: "x", unheard: 1 }], { dedupToken: "unheard" }),
        refused(117),
      );
      await assert.rejects(clickHouse.insert("nowhere", [{ a: 1 }], { dedupToken: "nowhere" }), refused(60));
      await assert.rejects(
        clickHouse.insert("contract", [{ note: "x".repeat(33 * 1024 * 1024) }], { dedupToken: "big" }),
        (error) => isClickHouseError(error, "refused"),
      );
    });

    test("answers while inserts and reads run at once", async () => {
      const work = Array.from({ length: 12 }, async (_, i) => {
        const rows = Array.from({ length: 50 }, (_, n) => ({ tenant: `p${i}`, n, integral: n, tags: [], rev: 1 }));
        await clickHouse.insert("contract", rows, { dedupToken: `parallel ${i}` });
        return clickHouse.query<{ sum: string }>(
          "SELECT sum(integral) AS sum FROM contract WHERE tenant = {t:String}",
          {
            t: `p${i}`,
          },
        );
      });
      for (const rows of await Promise.all(work)) assert.deepEqual(rows, [{ sum: "1225" }]);
      await clickHouse.ping();
    });

    test("an empty insert is nothing", async () => {
      await clickHouse.insert("contract", [], { dedupToken: "empty" });
    });
  });
}
