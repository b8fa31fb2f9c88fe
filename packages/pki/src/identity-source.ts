import { statSync } from "node:fs";
import { join } from "node:path";
import { type Identity, type IdentityOptions, loadIdentity } from "./identity.ts";

export interface IdentitySourceOptions extends IdentityOptions {
  /** How often to look for a renewal. */
  readonly pollMs?: number;
  /** Told of a renewal that could not be used; the old identity stays until it expires. */
  readonly onError?: (error: unknown) => void;
}

/**
 * The identity in a directory and its renewals. It polls rather than watches: the files may be a mounted secret whose
 * links are swapped, which file notifications miss.
 */
export class IdentitySource implements Disposable {
  readonly #dir: string;
  readonly #options: IdentitySourceOptions;
  readonly #listeners = new Set<(identity: Identity) => void>();
  readonly #timer: NodeJS.Timeout;
  #current: Identity;
  #stamp: string;

  private constructor(dir: string, options: IdentitySourceOptions) {
    this.#dir = dir;
    this.#options = options;
    this.#stamp = stampOf(dir);
    this.#current = loadIdentity(dir, options);
    this.#timer = setInterval(() => this.reload(), options.pollMs ?? 5000).unref();
  }

  /** Throws IDENTITY_UNUSABLE: a process without an identity does not start. */
  static open(dir: string, options: IdentitySourceOptions = {}): IdentitySource {
    return new IdentitySource(dir, options);
  }

  get current(): Identity {
    return this.#current;
  }

  /** Calls `listener` after each renewal until the answer is disposed. */
  onRenewal(listener: (identity: Identity) => void): Disposable {
    this.#listeners.add(listener);
    return { [Symbol.dispose]: () => void this.#listeners.delete(listener) };
  }

  /** Looks for a renewal now; true when there was one. */
  reload(): boolean {
    const stamp = stampOf(this.#dir);
    if (stamp === this.#stamp) return false;
    try {
      this.#current = loadIdentity(this.#dir, this.#options);
    } catch (error) {
      // Perhaps caught between two renames: the stamp is not taken over, so the next look tries again.
      this.#options.onError?.(error);
      return false;
    }
    this.#stamp = stamp;
    for (const listener of this.#listeners) listener(this.#current);
    return true;
  }

  [Symbol.dispose](): void {
    clearInterval(this.#timer);
    this.#listeners.clear();
  }
}

function stampOf(dir: string): string {
  return ["tls.crt", "tls.key", "ca.crt"]
    .map((file) => {
      const stat = statSync(join(dir, file), { throwIfNoEntry: false });
      return stat === undefined ? "-" : `${stat.ino}:${stat.mtimeMs}:${stat.size}`;
    })
    .join(" ");
}
