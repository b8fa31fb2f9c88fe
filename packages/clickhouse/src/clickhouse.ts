/** A value of a row. A bigint keeps every digit on its way in; integers of 64 bits and more come back as strings. */
export type ClickHouseValue =
  | null
  | boolean
  | number
  | bigint
  | string
  | readonly ClickHouseValue[]
  | { readonly [key: string]: ClickHouseValue };

/** Values for `{name:Type}` placeholders; scalars only, bound by the engine and never part of the text. */
export type ClickHouseParams = Readonly<Record<string, string | number | bigint>>;

/** A ClickHouse that somebody runs: a server, a cluster, or the engine in a child process of ours. */
export interface ClickHouse extends AsyncDisposable {
  /**
   * Adds `rows` in one block, or does nothing when `dedupToken` was inserted into that table before and is still within
   * the table's `non_replicated_deduplication_window`. The token therefore names the exact content. Rows with
   * unknown columns are refused.
   */
  insert(
    table: string,
    rows: readonly Readonly<Record<string, ClickHouseValue>>[],
    options: { dedupToken: string },
  ): Promise<void>;
  /** The rows of a SELECT, each an object keyed by column. `R` is the caller's claim about the columns. */
  query<R extends object>(sql: string, params?: ClickHouseParams): Promise<R[]>;
  /** Executes one statement that yields no rows, such as DDL. */
  exec(sql: string, params?: ClickHouseParams): Promise<void>;
  /** Rejects when it cannot answer now. */
  ping(): Promise<void>;
}

export type ClickHouseErrorKind =
  /** It could not be reached or is overloaded: the same call may succeed later, and an insert may have happened. */
  | "unavailable"
  /** It answered with an exception: the same call will fail again. */
  | "refused";

export class ClickHouseError extends Error {
  readonly kind: ClickHouseErrorKind;
  /** ClickHouse's number and name of the exception, such as 60 and UNKNOWN_TABLE, when it gave one. */
  readonly code: number | undefined;
  readonly type: string | undefined;

  constructor(
    kind: ClickHouseErrorKind,
    message: string,
    options: { cause?: unknown; code?: number; type?: string } = {},
  ) {
    super(message, "cause" in options ? { cause: options.cause } : undefined);
    this.name = "ClickHouseError";
    this.kind = kind;
    this.code = options.code;
    this.type = options.type;
  }
}

/** True when `error` is a ClickHouseError, of the given kind if one is named. */
export function isClickHouseError(error: unknown, kind?: ClickHouseErrorKind): error is ClickHouseError {
  return error instanceof ClickHouseError && (kind === undefined || error.kind === kind);
}
