import { readdir, readFile } from "node:fs/promises";
import { setTimeout as delay } from "node:timers/promises";

const endDeadlineMs = 5_000;
const endPollMs = 5;

/** User ids for processes that run at the same time: no two of them have the same, so none can touch another's files. */
export class UidSlots {
  readonly all: readonly number[];
  readonly #free: number[];

  constructor(firstUid: number, count: number) {
    this.all = Array.from({ length: count }, (_, index) => firstUid + index);
    this.#free = this.all.toReversed();
  }

  take(): number {
    const uid = this.#free.pop();
    if (uid === undefined) throw new Error("more processes than user ids");
    return uid;
  }

  giveBack(uid: number): void {
    this.#free.push(uid);
  }
}

/** Ends every process of a user and waits for that; throws when one outlives it, as those that start others faster may. */
export async function endProcessesOf(uid: number): Promise<void> {
  for (let waitedMs = 0; waitedMs < endDeadlineMs; waitedMs += endPollMs) {
    const pids = await processesOf(uid);
    if (pids.length === 0) return;
    for (const pid of pids) {
      try {
        process.kill(pid, "SIGKILL");
      } catch {
        // gone meanwhile
      }
    }
    await delay(endPollMs);
  }
  throw new Error(`processes of the user ${uid} outlive SIGKILL`);
}

/** Living ones: what is dead and waits for the host's init has nothing open. */
async function processesOf(uid: number): Promise<number[]> {
  const pids = (await readdir("/proc")).filter((name) => /^\d+$/.test(name)).map(Number);
  const isOurs = await Promise.all(
    pids.map(async (pid) => {
      const status = await readFile(`/proc/${pid}/status`, "latin1").catch(() => "");
      return Number(/^Uid:\t(\d+)/m.exec(status)?.[1] ?? -1) === uid && !/^State:\t[ZX]/m.test(status);
    }),
  );
  return pids.filter((_, index) => isOurs[index] === true);
}
