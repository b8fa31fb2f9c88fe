/** The thread behind `Checkpointer`: copies the log into the database whenever it is asked to, and closes on `undefined`. */
import { DatabaseSync } from "node:sqlite";
import { parentPort, workerData } from "node:worker_threads";

const db = new DatabaseSync(String(workerData));
// Whatever is copied is synced in the log before and in the database after: https://www.sqlite.org/wal.html
db.exec("PRAGMA synchronous=NORMAL; PRAGMA wal_autocheckpoint=0");
const checkpoint = db.prepare("PRAGMA wal_checkpoint(PASSIVE)");
parentPort?.on("message", (message: unknown) => {
  if (message === "close") {
    db.close();
    parentPort?.close();
    return;
  }
  let failure: string | undefined;
  try {
    checkpoint.get();
  } catch (error) {
    failure = String(error);
  }
  parentPort?.postMessage({ failure });
});
