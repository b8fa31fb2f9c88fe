import { mkdirSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import type { Session } from "chdb";

/** Settings of every session; a request's own are undone to these. */
const baseSettings: Readonly<Record<string, string>> = {
  max_threads: "2",
  max_insert_threads: "1",
  max_memory_usage: String(256 * 1024 * 1024),
  max_result_bytes: String(64 * 1024 * 1024), // a result is held in memory whole before it is sent
  max_execution_time: "30",
  async_insert: "0",
  output_format_json_quote_64bit_integers: "1",
};

// Server settings that bound what an idle engine keeps: its caches otherwise grow to gigabytes before they evict.
const serverConfig = `<clickhouse>
  <max_server_memory_usage>${512 * 1024 * 1024}</max_server_memory_usage>
  <mark_cache_size>${16 * 1024 * 1024}</mark_cache_size>
  <primary_index_cache_size>${16 * 1024 * 1024}</primary_index_cache_size>
  <index_mark_cache_size>${4 * 1024 * 1024}</index_mark_cache_size>
  <query_condition_cache_size>${4 * 1024 * 1024}</query_condition_cache_size>
  <compiled_expression_cache_size>${4 * 1024 * 1024}</compiled_expression_cache_size>
  <max_thread_pool_size>64</max_thread_pool_size>
  <max_thread_pool_free_size>4</max_thread_pool_free_size>
  <max_io_thread_pool_size>4</max_io_thread_pool_size>
  <max_io_thread_pool_free_size>0</max_io_thread_pool_free_size>
  <max_active_parts_loading_thread_pool_size>2</max_active_parts_loading_thread_pool_size>
  <max_outdated_parts_loading_thread_pool_size>1</max_outdated_parts_loading_thread_pool_size>
  <max_parts_cleaning_thread_pool_size>1</max_parts_cleaning_thread_pool_size>
  <background_pool_size>2</background_pool_size>
  <background_schedule_pool_size>2</background_schedule_pool_size>
</clickhouse>
`;

const readSessions = 2;
const maxWaiting = 64;

export class EngineBusy extends Error {}

/** A statement as ClickHouse's HTTP interface carries it. */
export interface Statement {
  readonly sql: string;
  readonly params: Readonly<Record<string, string | null>>;
  readonly settings: Readonly<Record<string, string>>;
  readonly defaultFormat: string;
}

export interface Insertion {
  readonly table: string;
  readonly columns: readonly string[] | undefined;
  readonly format: "JSONEachRow";
  readonly settings: Readonly<Record<string, string>>;
  readonly body: Buffer;
}

/**
 * The embedded engine on one data directory. A session takes one query at a time, so there are several: inserts have one
 * of their own and never wait behind a scan. Callers beyond `maxWaiting` are refused with EngineBusy.
 */
export class ChdbEngine implements AsyncDisposable {
  readonly #read: Lane;
  readonly #write: Lane;
  readonly #drain: () => Promise<void>;

  private constructor(read: Lane, write: Lane, drain: () => Promise<void>) {
    this.#read = read;
    this.#write = write;
    this.#drain = drain;
  }

  static async open(dataDir: string): Promise<ChdbEngine> {
    const { drainPending, Session } = await import("chdb");
    mkdirSync(dataDir, { recursive: true, mode: 0o700 });
    const configFile = join(dataDir, "server.xml");
    writeFileSync(configFile, serverConfig, { mode: 0o600 });
    const connectionArgs = [
      `--config-file=${configFile}`,
      ...Object.entries(baseSettings).map(([name, value]) => `--${name}=${value}`),
    ];
    const open = () => new Session(join(dataDir, "store"), { connectionArgs });
    const read = new Lane(Array.from({ length: readSessions }, open));
    return new ChdbEngine(read, new Lane([open()]), drainPending);
  }

  async execute(statement: Statement): Promise<Uint8Array> {
    return this.#read.lend(async (session) => {
      const names = Object.keys(statement.settings);
      const set = names.map((name) => `SET ${name} = ${quote(statement.settings[name] ?? "")}; `).join("");
      try {
        const options = { format: statement.defaultFormat };
        const text = set + statement.sql;
        const result =
          Object.keys(statement.params).length === 0
            ? await session.queryAsync(text, options)
            : await session.queryBindAsync(text, statement.params, options);
        return result.bytes();
      } finally {
        for (const name of names) {
          const base = baseSettings[name];
          await session
            .queryAsync(`SET ${name} = ${base === undefined ? "DEFAULT" : quote(base)}`)
            .catch(() => undefined);
        }
      }
    });
  }

  async insert(insertion: Insertion): Promise<{ rows: number; bytes: number }> {
    return this.#write.lend(async (session) => {
      const { table, columns, format, settings, body } = insertion;
      const summary = await session.insert({
        table,
        ...(columns === undefined ? {} : { columns }),
        format,
        settings,
        values: body,
      });
      return { rows: summary.rowsWritten, bytes: summary.bytesWritten };
    });
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.#drain(); // closing a session under a running query aborts the engine
    this.#read.close();
    this.#write.close();
    await this.#drain();
  }
}

/** Sessions that are lent one at a time, in the order asked. */
class Lane {
  readonly #all: readonly Session[];
  readonly #free: Session[];
  readonly #waiting: ((session: Session) => void)[] = [];

  constructor(sessions: readonly Session[]) {
    this.#all = sessions;
    this.#free = [...sessions];
  }

  async lend<T>(body: (session: Session) => Promise<T>): Promise<T> {
    const session = this.#free.pop() ?? (await this.#wait());
    try {
      return await body(session);
    } finally {
      const next = this.#waiting.shift();
      if (next === undefined) this.#free.push(session);
      else next(session);
    }
  }

  #wait(): Promise<Session> {
    if (this.#waiting.length >= maxWaiting) throw new EngineBusy();
    return new Promise((resolve) => void this.#waiting.push(resolve));
  }

  close(): void {
    for (const session of this.#all) session.close();
  }
}

function quote(value: string): string {
  return `'${value.replaceAll("\\", "\\\\").replaceAll("'", "\\'")}'`;
}
