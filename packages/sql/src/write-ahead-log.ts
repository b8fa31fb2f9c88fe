import { type FileHandle, open } from "node:fs/promises";
import { type Durability, SqlError } from "./sql.ts";

type SyncedFile = Pick<FileHandle, "datasync" | "close">;

/**
 * The log of one database, made durable from libuv's pool. SQLite writes commits into it without syncing them, since it would
 * do that in the thread that calls it; here one fdatasync serves everyone who waits, and the thread goes on meanwhile.
 */
export class WriteAheadLog implements AsyncDisposable {
  readonly #file: SyncedFile;
  /** Commits that were written, those of them that somebody waits for, and those that are durable, each with all before it. */
  #commits = 0;
  #demanded = 0;
  #durable = 0;
  #syncing: Promise<void> | undefined;
  #failure: SqlError | undefined;

  constructor(file: SyncedFile) {
    this.#file = file;
  }

  /** Opens the log that SQLite has made; it keeps this file until its last connection is closed. */
  static async open(path: string): Promise<WriteAheadLog> {
    return new WriteAheadLog(await open(path, "r"));
  }

  /** A commit has been written; of durability "power" when somebody waits for it. */
  committed(durability: Durability): void {
    this.#commits += 1;
    if (durability === "power") this.demandAll();
  }

  /** From now on `durable` waits for everything that was committed so far. */
  demandAll(): void {
    this.#demanded = this.#commits;
  }

  /**
   * Resolves when everything that was committed with durability "power" before this call is durable, and all before that.
   * Throws SqlError after a sync that failed, now and ever after: nobody knows then what the disk holds.
   */
  async durable(): Promise<void> {
    const wanted = this.#demanded;
    while (this.#durable < wanted) {
      if (this.#failure !== undefined) throw this.#failure;
      this.#syncing ??= this.#sync().finally(() => {
        this.#syncing = undefined;
      });
      await this.#syncing;
    }
  }

  async #sync(): Promise<void> {
    const covered = this.#commits;
    try {
      await this.#file.datasync();
      this.#durable = covered;
    } catch (cause) {
      this.#failure = new SqlError("other", "the log of the database could not be synced", cause);
    }
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.durable().catch(() => undefined); // whoever waits is told
    await this.#file.close();
  }
}
