import { AsyncLocalStorage } from "node:async_hooks";
import { closeSync, mkdirSync, openSync } from "node:fs";
import { dirname } from "node:path";
import { DatabaseSync, type StatementSync } from "node:sqlite";
import { Checkpointer } from "./checkpointer.ts";
import { type MigrationTarget, migrate } from "./migrate.ts";
import {
  type Durability,
  type Migration,
  type Sql,
  SqlError,
  type SqlErrorKind,
  type SqlReadOptions,
  type SqlRow,
  type SqlStatements,
  type SqlValue,
} from "./sql.ts";
import { Turns } from "./turns.ts";
import { WriteAheadLog } from "./write-ahead-log.ts";

const busyTimeoutMs = 5_000;
const maxCachedStatements = 256;
/** More than the log ever has: cutting it when it starts afresh would take tens of milliseconds of the calling thread. */
const walSizeLimitBytes = 512 * 1024 * 1024;
/** Pages of the log that are not copied yet when that is done, beside everyone's work; */
const walPagesToCopy = 4000;
/** and pages in the log when a rest is copied while everyone waits, so that the log starts afresh and is bounded: */
const walPagesAtMost = 65_536;
/** a rest of so few pages, if that can be had in so many rounds beside everyone's work. */
const walPagesToWaitFor = 200;
const walRounds = 4;

export interface SqliteOptions {
  /** The file; its folder is made with mode 0700 and the file with 0600. `:memory:` is a database of this process alone. */
  readonly path: string;
  readonly migrations: readonly Migration[];
  /** Memory for pages, taken as it is needed; 2 MiB unless told. */
  readonly cacheBytes?: number;
}

// Extended result codes (https://www.sqlite.org/rescode.html); the low byte is the primary code.
const kindByExtendedCode: Readonly<Record<number, SqlErrorKind>> = {
  275: "check",
  787: "foreign_key",
  1299: "not_null",
  1555: "unique",
  2067: "unique",
  2579: "unique",
};
const kindByPrimaryCode: Readonly<Record<number, SqlErrorKind>> = {
  5: "busy",
  6: "busy",
  11: "corrupt",
  13: "full",
  26: "corrupt",
};

function toSqlError(cause: unknown): SqlError {
  if (cause instanceof SqlError) return cause;
  const code = typeof cause === "object" && cause !== null && "errcode" in cause ? Number(cause.errcode) : 0;
  const kind = kindByExtendedCode[code] ?? kindByPrimaryCode[code & 0xff] ?? "other";
  return new SqlError(kind, cause instanceof Error ? cause.message : "the database failed", cause);
}

/** One connection with the prepared statements that were used last. Synchronous: SQLite works in this thread. */
class Connection implements Disposable {
  readonly #db: DatabaseSync;
  readonly #statements = new Map<string, StatementSync>();

  constructor(db: DatabaseSync) {
    this.#db = db;
  }

  /** Calls `body` with the statement prepared from `sql`; failures become SqlErrors. */
  prepared<T>(sql: string, options: SqlReadOptions | undefined, body: (statement: StatementSync) => T): T {
    try {
      const statement = this.#statements.get(sql) ?? this.#db.prepare(sql);
      this.#statements.delete(sql);
      this.#statements.set(sql, statement); // now the youngest
      if (this.#statements.size > maxCachedStatements) {
        const { value: oldest } = this.#statements.keys().next();
        if (oldest !== undefined) this.#statements.delete(oldest);
      }
      statement.setReadBigInts(options?.bigint === true);
      return body(statement);
    } catch (cause) {
      throw toSqlError(cause);
    }
  }

  script(sql: string): void {
    try {
      this.#db.exec(sql);
    } catch (cause) {
      throw toSqlError(cause);
    }
  }

  get inTransaction(): boolean {
    return this.#db.isTransaction;
  }

  [Symbol.dispose](): void {
    this.#statements.clear();
    this.#db.close();
  }
}

/** The statements of a transaction, refused once it has ended. */
class Transaction implements MigrationTarget {
  readonly #connection: Connection;
  open = true;

  constructor(connection: Connection) {
    this.#connection = connection;
  }

  async query<R extends object = SqlRow>(sql: string, params: readonly SqlValue[] = [], options?: SqlReadOptions) {
    this.#mustBeOpen();
    return this.#connection.prepared(sql, options, (s) => s.all(...params).map((row) => plainRow(row) as R));
  }

  async one<R extends object = SqlRow>(sql: string, params: readonly SqlValue[] = [], options?: SqlReadOptions) {
    this.#mustBeOpen();
    const row = this.#connection.prepared(sql, options, (s) => s.get(...params));
    return row === undefined ? undefined : (plainRow(row) as R);
  }

  async run(sql: string, params: readonly SqlValue[] = []) {
    this.#mustBeOpen();
    return this.#connection.prepared(sql, undefined, (s) => ({ changes: Number(s.run(...params).changes) }));
  }

  async script(sql: string) {
    this.#mustBeOpen();
    this.#connection.script(sql);
  }

  #mustBeOpen(): void {
    if (!this.open) throw new SqlError("misuse", "the transaction has ended");
  }
}

/** node:sqlite's rows have no prototype; those of other engines do. Key by key: spreading such an object takes three times as long. */
function plainRow(row: object): SqlRow {
  const plain: Record<string, unknown> = {};
  for (const name in row) plain[name] = (row as Record<string, unknown>)[name];
  return plain as SqlRow;
}

interface LogState {
  /** Pages in the log, and how many of them have been copied. */
  readonly log: number;
  readonly checkpointed: number;
}

/** What a database in a file has and one in memory has not. */
interface LogKeeping extends AsyncDisposable {
  readonly log: WriteAheadLog;
  readonly checkpointer: Checkpointer;
}

class Sqlite implements Sql {
  readonly #connection: Connection;
  readonly #turns = new Turns();
  /** The transaction in whose async context the caller runs: using the outer handle there would wait for itself. */
  readonly #current = new AsyncLocalStorage<Transaction>();
  #logKeeping: LogKeeping | undefined;
  #checkpointing: Promise<void> | undefined;
  #closed = false;

  constructor(connection: Connection) {
    this.#connection = connection;
  }

  /** From now on commits are made durable, and the log is copied, outside this thread. */
  syncElsewhere(logKeeping: LogKeeping): void {
    this.#connection.script("PRAGMA synchronous=NORMAL; PRAGMA wal_autocheckpoint=0");
    this.#logKeeping = logKeeping;
  }

  query<R extends object = SqlRow>(sql: string, params?: readonly SqlValue[], options?: SqlReadOptions) {
    return this.#turn((statements) => statements.query<R>(sql, params, options), { writes: !isRead(sql) });
  }

  one<R extends object = SqlRow>(sql: string, params?: readonly SqlValue[], options?: SqlReadOptions) {
    return this.#turn((statements) => statements.one<R>(sql, params, options), { writes: !isRead(sql) });
  }

  run(sql: string, params?: readonly SqlValue[]) {
    return this.#turn((statements) => statements.run(sql, params), { writes: true });
  }

  transaction<T>(
    body: (tx: SqlStatements) => Promise<T>,
    options: { readonly durability?: Durability } = {},
  ): Promise<T> {
    return this.inTransaction(body, options);
  }

  settle(): Promise<void> {
    return this.#turn(async () => this.#logKeeping?.log.demandAll(), { writes: false });
  }

  inTransaction<T>(
    body: (tx: MigrationTarget) => Promise<T>,
    { durability = "power" }: { readonly durability?: Durability } = {},
  ): Promise<T> {
    return this.#turn(
      async (tx) => {
        this.#connection.script("BEGIN IMMEDIATE");
        try {
          const result = await this.#current.run(tx, () => body(tx));
          tx.open = false; // what `body` left running must not write between here and the commit
          this.#connection.script("COMMIT");
          return result;
        } catch (error) {
          // Some failures (a full disk, for one) have rolled back already: https://www.sqlite.org/lang_transaction.html
          if (this.#connection.inTransaction) this.#connection.script("ROLLBACK");
          throw error;
        }
      },
      { writes: true, durability },
    );
  }

  async [Symbol.asyncDispose](): Promise<void> {
    if (this.#closed) return;
    this.#closed = true;
    await this.#checkpointing;
    await this.#turns.take(async () => {
      await this.#logKeeping?.[Symbol.asyncDispose]();
      this.#connection[Symbol.dispose](); // the last connection copies what is left, and syncs it
    });
  }

  async #turn<T>(
    body: (tx: Transaction) => Promise<T>,
    { writes, durability = "power" }: { readonly writes: boolean; readonly durability?: Durability },
  ): Promise<T> {
    if (this.#closed) throw new SqlError("misuse", "the database is closed");
    if (this.#current.getStore()?.open === true) {
      throw new SqlError("misuse", "the outer database handle was used inside a transaction");
    }
    try {
      return await this.#turns.take(async () => {
        const tx = new Transaction(this.#connection);
        try {
          return await body(tx);
        } finally {
          tx.open = false;
          if (writes) this.#logKeeping?.log.committed(durability);
          if (writes) this.#checkpointIfDue();
        }
      });
    } finally {
      // Readers too: what they have seen must not be undone by a power failure after they told somebody.
      if (durability === "power") await this.#logKeeping?.log.durable();
    }
  }

  #checkpointIfDue(): void {
    if (this.#checkpointing !== undefined || this.#logKeeping === undefined) return;
    if (this.#pagesToCopy().left < walPagesToCopy) return;
    this.#checkpointing = this.#copyLog(this.#logKeeping.checkpointer)
      .catch(() => undefined) // the log stays, and the next commit tries again
      .finally(() => {
        this.#checkpointing = undefined;
      });
  }

  async #copyLog(checkpointer: Checkpointer): Promise<void> {
    for (let round = 0; round < walRounds; round++) {
      await checkpointer.copy();
      const { log, left } = this.#pagesToCopy();
      if (left === 0) break;
      if (log <= walPagesAtMost) return checkpointer.release();
      if (left <= walPagesToWaitFor) break;
    }
    await this.#turns.take(() => checkpointer.restart());
  }

  #pagesToCopy(): { readonly log: number; readonly left: number } {
    return this.#connection.prepared("PRAGMA wal_checkpoint(NOOP)", undefined, (statement) => {
      const { log, checkpointed } = statement.get() as unknown as LogState;
      return { log, left: log - checkpointed };
    });
  }
}

/** Everything else may write, and waits for a sync that it perhaps does not need. */
function isRead(sql: string): boolean {
  return /^\s*SELECT\b/i.test(sql);
}

/**
 * Opens a SQLite file, brings its schema up to date and returns it. Commits are durable when acknowledged: they are
 * written to the log in this thread and synced in libuv's pool. Throws SqlError.
 */
export async function openSqlite({ path, migrations, cacheBytes = 2 * 1024 * 1024 }: SqliteOptions): Promise<Sql> {
  if (path !== ":memory:") {
    mkdirSync(dirname(path), { recursive: true, mode: 0o700 });
    closeSync(openSync(path, "a", 0o600)); // SQLite would make it world-readable; its -wal and -shm copy this mode
  }
  let db: DatabaseSync;
  try {
    db = new DatabaseSync(path, { enableForeignKeyConstraints: true, timeout: busyTimeoutMs });
  } catch (cause) {
    throw toSqlError(cause);
  }
  const connection = new Connection(db);
  const sqlite = new Sqlite(connection);
  try {
    connection.script(
      `PRAGMA journal_mode=WAL; PRAGMA synchronous=FULL; PRAGMA journal_size_limit=${walSizeLimitBytes}; PRAGMA trusted_schema=OFF;
       PRAGMA cache_size=-${Math.ceil(cacheBytes / 1024)}`,
    );
    await migrate((body) => sqlite.inTransaction(body), migrations);
    if (path !== ":memory:") sqlite.syncElsewhere(await openLogKeeping(path));
  } catch (error) {
    await sqlite[Symbol.asyncDispose]();
    throw error;
  }
  return sqlite;
}

async function openLogKeeping(path: string): Promise<LogKeeping> {
  const log = await WriteAheadLog.open(`${path}-wal`);
  const checkpointer = new Checkpointer(path);
  return {
    log,
    checkpointer,
    [Symbol.asyncDispose]: async () => {
      await checkpointer[Symbol.asyncDispose]();
      await log[Symbol.asyncDispose]();
    },
  };
}
