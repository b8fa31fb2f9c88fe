/**
 * The thread behind `Checkpointer`. While it copies, a read transaction of its own begun before keeps the log from starting afresh
 * under a commit of the process's: SQLite would sync the log's header then, in the thread that commits, and with it whatever the
 * file system's journal has gathered. It starts the log afresh itself, when it is told that nobody else commits.
 */
import { closeSync, fdatasyncSync, openSync } from "node:fs";
import { DatabaseSync } from "node:sqlite";
import { parentPort, workerData } from "node:worker_threads";

interface LogState {
  /** Whether somebody else kept a part from being copied; pages in the log, and how many of them have been copied. */
  readonly busy: number;
  readonly log: number;
  readonly checkpointed: number;
}

const path = String(workerData);
const copier = new DatabaseSync(path);
// Whatever is copied is synced in the log before and in the database after: https://www.sqlite.org/wal.html
copier.exec("PRAGMA synchronous=NORMAL; PRAGMA wal_autocheckpoint=0");
const checkpoint = copier.prepare("PRAGMA wal_checkpoint(PASSIVE)");
const holder = new DatabaseSync(path);
holder.exec("PRAGMA synchronous=OFF; PRAGMA wal_autocheckpoint=0");

const orders: Readonly<Record<string, () => void>> = { copy, release, restart, close };

function copy(): void {
  release();
  holder.exec("BEGIN; SELECT COUNT(*) FROM sqlite_schema");
  checkpoint.get();
}

function release(): void {
  if (holder.isTransaction) holder.exec("ROLLBACK");
}

/**
 * Copies the rest and, if that was all, makes a commit of one page, which SQLite puts at the log's start. One page needs no sync
 * between the header and itself: with one of them lost or torn, the log reads as empty or as what it was, and the database has all
 * of that. Before anything is written behind it, it is durable.
 */
function restart(): void {
  release();
  const { busy, log, checkpointed } = checkpoint.get() as unknown as LogState;
  if (busy !== 0 || log !== checkpointed) return;
  const version = holder.prepare("PRAGMA user_version").get()?.["user_version"];
  holder.exec(`PRAGMA user_version=${Number(version)}`);
  const file = openSync(`${path}-wal`, "r");
  try {
    fdatasyncSync(file);
  } finally {
    closeSync(file);
  }
}

function close(): void {
  holder.close();
  copier.close();
  parentPort?.close();
}

parentPort?.on("message", (order: string) => {
  let failure: string | undefined;
  try {
    orders[order]?.();
  } catch (error) {
    failure = String(error);
  }
  if (order !== "close") parentPort?.postMessage({ failure });
});
