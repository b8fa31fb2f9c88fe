/** At most so many at once; the others wait in the order in which they came. */
class Slots {
  #free: number;
  readonly #waiting: (() => void)[] = [];

  constructor(count: number) {
    this.#free = count;
  }

  async take(): Promise<Disposable> {
    if (this.#free > 0) this.#free -= 1;
    else await new Promise<void>((resolve) => this.#waiting.push(resolve));
    let taken = true;
    return {
      [Symbol.dispose]: () => {
        if (!taken) return;
        taken = false;
        const next = this.#waiting.shift();
        if (next) next();
        else this.#free += 1;
      },
    };
  }
}

/** Slots that are shared by many, of whom none may take more than its part. */
export class SharedSlots {
  readonly #all: Slots;
  readonly #perKey: number;
  readonly #byKey = new Map<string, { readonly slots: Slots; users: number }>();

  constructor(count: number, perKey: number) {
    this.#all = new Slots(count);
    this.#perKey = perKey;
  }

  async take(key: string): Promise<Disposable> {
    const own = this.#byKey.get(key) ?? { slots: new Slots(this.#perKey), users: 0 };
    this.#byKey.set(key, own);
    own.users += 1;
    const mine = await own.slots.take();
    const shared = await this.#all.take();
    return {
      [Symbol.dispose]: () => {
        shared[Symbol.dispose]();
        mine[Symbol.dispose]();
        own.users -= 1;
        if (own.users === 0) this.#byKey.delete(key);
      },
    };
  }
}
