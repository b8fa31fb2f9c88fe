import { Readable } from "node:stream";
import type { ClickHouseClient } from "@clickhouse/client";
import { type ClickHouse, ClickHouseError, type ClickHouseParams, type ClickHouseValue } from "./clickhouse.ts";

export interface HttpClickHouseOptions {
  /** http(s)://host:port of ClickHouse's HTTP interface. */
  readonly url: string;
  readonly username: string;
  readonly password: string;
  readonly database?: string;
}

const requestTimeoutMs = 35_000;
const maxOpenConnections = 8;
/** Largest insert: one block, so that its token stands for all of it. */
export const maxInsertBytes = 32 * 1024 * 1024;

// https://github.com/ClickHouse/ClickHouse/blob/master/src/Common/ErrorCodes.cpp: what another attempt may cure.
const transientCodes = new Set([159, 202, 209, 210, 241, 242, 252, 425]);

/** A ClickHouse behind its HTTP interface, through the official client, which is loaded at the first connection. */
export async function connectClickHouse(options: HttpClickHouseOptions): Promise<ClickHouse> {
  const { createClient, ClickHouseLogLevel } = await import("@clickhouse/client");
  const client = createClient({
    url: options.url,
    username: options.username,
    password: options.password,
    ...(options.database === undefined ? {} : { database: options.database }),
    request_timeout: requestTimeoutMs,
    max_open_connections: maxOpenConnections,
    log: { level: ClickHouseLogLevel.OFF }, // its log lines would repeat what the thrown error says
  });
  return new HttpClickHouse(client);
}

class HttpClickHouse implements ClickHouse {
  readonly #client: ClickHouseClient;

  constructor(client: ClickHouseClient) {
    this.#client = client;
  }

  async insert(
    table: string,
    rows: readonly Readonly<Record<string, ClickHouseValue>>[],
    options: { dedupToken: string },
  ): Promise<void> {
    if (rows.length === 0) return;
    const body = `${rows.map((row) => JSON.stringify(row, exactValue)).join("\n")}\n`;
    if (Buffer.byteLength(body) > maxInsertBytes) {
      throw new ClickHouseError("refused", `an insert of ${rows.length} rows exceeds ${maxInsertBytes} bytes`);
    }
    await translated(async () => {
      const result = await this.#client.exec({
        query: `INSERT INTO ${table} FORMAT JSONEachRow`,
        values: Readable.from([body], { objectMode: false }),
        clickhouse_settings: {
          async_insert: 0, // the asynchronous path neither honours the token on all versions nor confirms the write
          insert_deduplicate: 1,
          insert_deduplication_token: options.dedupToken,
          input_format_skip_unknown_fields: 0,
        },
      });
      for await (const _ of result.stream) {
        // Nothing is expected; reading to the end gives the connection back.
      }
    });
  }

  async query<R extends object>(sql: string, params?: ClickHouseParams): Promise<R[]> {
    return translated(async () => {
      const result = await this.#client.query({
        query: sql,
        format: "JSONEachRow",
        ...(params === undefined ? {} : { query_params: params }),
        clickhouse_settings: { output_format_json_quote_64bit_integers: 1, wait_end_of_query: 1 },
      });
      return result.json<R>();
    });
  }

  async exec(sql: string, params?: ClickHouseParams): Promise<void> {
    await translated(() =>
      this.#client.command({ query: sql, ...(params === undefined ? {} : { query_params: params }) }),
    );
  }

  async ping(): Promise<void> {
    const result = await this.#client.ping({ select: true });
    if (!result.success) throw toClickHouseError(result.error);
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.#client.close();
  }
}

function exactValue(_key: string, value: unknown): unknown {
  return typeof value === "bigint" ? value.toString() : value;
}

async function translated<T>(body: () => Promise<T>): Promise<T> {
  try {
    return await body();
  } catch (cause) {
    throw toClickHouseError(cause);
  }
}

function toClickHouseError(cause: unknown): ClickHouseError {
  const code = typeof cause === "object" && cause !== null && "type" in cause && "code" in cause ? cause : undefined;
  if (code === undefined) return new ClickHouseError("unavailable", "ClickHouse cannot be reached", { cause });
  const number = Number(code.code);
  return new ClickHouseError(
    transientCodes.has(number) ? "unavailable" : "refused",
    `ClickHouse refused: ${String(code.type)}`,
    { cause, code: number, type: String(code.type) },
  );
}
