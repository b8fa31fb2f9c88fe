import { SqlError } from "./sql.ts";

const maxWaiting = 10_000;

/** Gives callers the connection one at a time, in the order they asked. */
export class Turns {
  #waiting = 0;
  #last: Promise<unknown> = Promise.resolve();

  /** Runs `body` when all earlier ones have settled. Throws SqlError `busy` when too many wait already. */
  take<T>(body: () => Promise<T>): Promise<T> {
    if (this.#waiting >= maxWaiting)
      throw new SqlError("busy", `more than ${maxWaiting} callers wait for the database`);
    this.#waiting += 1;
    const turn = this.#last.then(body).finally(() => {
      this.#waiting -= 1;
    });
    this.#last = turn.catch(() => undefined);
    return turn;
  }
}
