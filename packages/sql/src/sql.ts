/** What a bound parameter or a column may hold. Booleans are stored as 0 and 1, instants as integer milliseconds. */
export type SqlValue = null | number | bigint | string | Uint8Array;

export type SqlRow = Record<string, SqlValue>;

export interface SqlReadOptions {
  /** Integers come back as bigint. Without it they come as number, and one beyond 2^53 is an error, never rounded. */
  readonly bigint?: boolean;
}

/** Statements with `?` placeholders bound from `params` in order; values never travel inside the text. */
export interface SqlStatements {
  /** Every row, as plain objects keyed by column name. `R` is the caller's claim about the columns that it selects. */
  query<R extends object = SqlRow>(sql: string, params?: readonly SqlValue[], options?: SqlReadOptions): Promise<R[]>;
  /** The first row, or undefined when there is none. */
  one<R extends object = SqlRow>(
    sql: string,
    params?: readonly SqlValue[],
    options?: SqlReadOptions,
  ): Promise<R | undefined>;
  /** Executes one statement; `changes` counts the rows that it inserted, updated or deleted. */
  run(sql: string, params?: readonly SqlValue[]): Promise<{ changes: number }>;
}

/** What an acknowledged transaction survives: power loss, or only the end of this process. */
export type Durability = "power" | "process";

/**
 * A service's database. Statements outside a transaction commit by themselves and wait for a running transaction, so
 * none of them sees half of it. Every failure is a SqlError. What has been acknowledged survives power loss, unless it was asked
 * for less.
 */
export interface Sql extends SqlStatements, AsyncDisposable {
  /**
   * Runs `body` in one write transaction: commits when it resolves, rolls back when it rejects. Transactions run one
   * after the other. `body` uses only the `tx` given: the outer handle and a nested transaction are refused inside it,
   * since they would wait for their own end. Keep I/O other than `tx` out of it: everyone else waits.
   *
   * With durability "process" it does not wait for the disk: a killed process loses nothing, and a power failure undoes it
   * unless `settle` or a later transaction without that has resolved. Transactions are undone from the last one back, whole.
   */
  transaction<T>(body: (tx: SqlStatements) => Promise<T>, options?: { readonly durability?: Durability }): Promise<T>;
  /** Resolves when everything that was committed before this call survives power loss. */
  settle(): Promise<void>;
}

/** One step of the schema. Ids count 1, 2, 3 …; a step that has been released is never edited, a later one amends it. */
export interface Migration {
  readonly id: number;
  /** One or more statements, applied in one transaction. */
  readonly sql: string;
}

export type SqlErrorKind =
  | "unique"
  | "foreign_key"
  | "not_null"
  | "check"
  /** Another process holds the database, or too many callers wait. */
  | "busy"
  /** The disk is full. */
  | "full"
  /** The file is damaged or not a database. */
  | "corrupt"
  /** The schema in the file and the migrations in the code disagree. */
  | "migration"
  /** The port was used wrongly: after its end, or the outer handle inside a transaction. */
  | "misuse"
  | "other";

export class SqlError extends Error {
  readonly kind: SqlErrorKind;

  constructor(kind: SqlErrorKind, message: string, cause?: unknown) {
    super(message, cause === undefined ? undefined : { cause });
    this.name = "SqlError";
    this.kind = kind;
  }
}

/** True when `error` is a SqlError, of the given kind if one is named. */
export function isSqlError(error: unknown, kind?: SqlErrorKind): error is SqlError {
  return error instanceof SqlError && (kind === undefined || error.kind === kind);
}
