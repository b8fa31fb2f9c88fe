import assert from "node:assert/strict";
import { once } from "node:events";
import type { AddressInfo } from "node:net";
import { test } from "node:test";
import { EngineBusy, type Insertion, type Statement } from "./chdb-engine.ts";
import { createChdbHttpServer } from "./chdb-http.ts";

interface Door {
  ask(path: string, init?: RequestInit & { password?: string }): Promise<{ status: number; text: string }>;
  readonly statements: Statement[];
  readonly insertions: Insertion[];
}

/** The HTTP side alone, in front of an engine that remembers what reached it. */
async function withDoor(body: (door: Door) => Promise<void>): Promise<void> {
  const statements: Statement[] = [];
  const insertions: Insertion[] = [];
  const server = createChdbHttpServer(
    {
      async execute(statement) {
        if (statement.sql === "busy") throw new EngineBusy();
        statements.push(statement);
        return Buffer.from("answer\n");
      },
      async insert(insertion) {
        insertions.push(insertion);
        return { rows: 1, bytes: 1 };
      },
    },
    "right",
  );
  server.listen(0, "127.0.0.1");
  await once(server, "listening");
  const origin = `http://127.0.0.1:${(server.address() as AddressInfo).port}`;
  try {
    await body({
      statements,
      insertions,
      async ask(path, { password = "right", ...init } = {}) {
        const authorization = `Basic ${Buffer.from(`unkey:${password}`).toString("base64")}`;
        const response = await fetch(origin + path, { headers: { authorization }, ...init });
        return { status: response.status, text: await response.text() };
      },
    });
  } finally {
    server.closeAllConnections();
    server.close();
  }
}

const insertPath = (table: string) => `/?query=${encodeURIComponent(`INSERT INTO ${table} FORMAT JSONEachRow`)}`;

test("nothing is answered without the password", () =>
  withDoor(async (door) => {
    for (const init of [{ headers: {} }, { password: "wrong" }, { password: "" }]) {
      for (const path of ["/ping", "/?query=SELECT+1", "/anything"]) {
        const { status, text } = await door.ask(path, init);
        assert.equal(status, 401, path);
        assert.match(text, /^Code: 516\. .*\(AUTHENTICATION_FAILED\)/);
      }
    }
    assert.deepEqual(door.statements, []);
    assert.deepEqual(await door.ask("/ping"), { status: 200, text: "Ok.\n" });
  }));

test("statements, parameters and settings reach the engine as they were meant", () =>
  withDoor(async (door) => {
    const search = new URLSearchParams({ param_a: "tab\\tq\\'\\\\", param_n: "\\N", max_threads: "1", query_id: "x" });
    const { status, text } = await door.ask(`/?${search.toString()}`, { method: "POST", body: "SELECT {a:String}" });
    assert.deepEqual([status, text], [200, "answer\n"]);
    assert.deepEqual(door.statements, [
      {
        sql: "SELECT {a:String}",
        params: { a: "tab\tq'\\", n: null },
        settings: { max_threads: "1" },
        defaultFormat: "TabSeparated",
      },
    ]);
  }));

test("rows that could hide a statement never reach the engine", () =>
  withDoor(async (door) => {
    const smuggled = [
      '{"a":1}\n\n; DROP TABLE t',
      '{"a":1}\n\n{"a":2}',
      "[1]",
      "null",
      '{"a":',
      "; DROP TABLE t",
      "\n",
    ];
    for (const body of smuggled) {
      const { status, text } = await door.ask(insertPath("t"), { method: "POST", body });
      assert.equal(status, 400, body);
      assert.match(text, /\(INCORRECT_DATA\)/);
    }
    assert.equal((await door.ask(insertPath("t"), { method: "POST" })).status, 400);
    assert.equal(door.insertions.length, 0);
    const body = '{"a":"\\n\\n; DROP TABLE t"}\n{"a":2}\n';
    assert.equal((await door.ask(insertPath("t"), { method: "POST", body })).status, 200);
    assert.equal(door.insertions[0]?.body.toString(), body);
  }));

test("oversize, compressed and unknown requests are refused", () =>
  withDoor(async (door) => {
    const big = "x".repeat(256 * 1024 + 1);
    assert.equal((await door.ask("/", { method: "POST", body: big })).status, 413);
    const row = `{"a":"${"x".repeat(32 * 1024 * 1024)}"}`;
    assert.equal((await door.ask(insertPath("t"), { method: "POST", body: row })).status, 413);
    assert.equal((await door.ask("/play")).status, 404);
    assert.equal((await door.ask("/", { method: "DELETE" })).status, 405);
    assert.equal((await door.ask("/", { method: "POST", body: " " })).status, 400);
    assert.equal((await door.ask("/?session_id=x", { method: "POST", body: "SELECT 1" })).status, 400);
    assert.equal((await door.ask("/?bad%20name=1", { method: "POST", body: "SELECT 1" })).status, 400);
    const headers = {
      authorization: `Basic ${Buffer.from("unkey:right").toString("base64")}`,
      "content-encoding": "gzip",
    };
    assert.equal((await door.ask("/", { method: "POST", body: "SELECT 1", headers })).status, 415);
    assert.deepEqual([door.statements, door.insertions], [[], []]);
  }));

test("an engine with too many callers says so", () =>
  withDoor(async (door) => {
    const { status, text } = await door.ask("/", { method: "POST", body: "busy" });
    assert.equal(status, 503);
    assert.match(text, /^Code: 202\. /);
  }));
