import { inspect } from "node:util";

const shown = "[secret]";

/** A value that prints as `[secret]` wherever it may end by accident: JSON, string building, `inspect`, an error. */
export class Secret {
  readonly #value: string;

  constructor(value: string) {
    this.#value = value;
  }

  /** The value itself; call it only where it is used. */
  reveal(): string {
    return this.#value;
  }

  toJSON(): string {
    return shown;
  }

  toString(): string {
    return shown;
  }

  [inspect.custom](): string {
    return shown;
  }
}
