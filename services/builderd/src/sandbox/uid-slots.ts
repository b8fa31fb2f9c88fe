/** User ids for processes that run at the same time: no two of them have the same, so none can touch another's files. */
export class UidSlots {
  readonly #free: number[];

  constructor(firstUid: number, count: number) {
    this.#free = Array.from({ length: count }, (_, index) => firstUid + count - 1 - index);
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
