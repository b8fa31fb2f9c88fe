/** Lets waiters sleep until something may have changed. Take `next` before looking, so that nothing is missed in between. */
export class WakeUp {
  #pending = Promise.withResolvers<void>();

  get next(): Promise<void> {
    return this.#pending.promise;
  }

  call(): void {
    this.#pending.resolve();
    this.#pending = Promise.withResolvers();
  }
}
