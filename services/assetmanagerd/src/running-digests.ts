import { createHash, type Hash } from "node:crypto";
import type { AssetId } from "@unkey/base";

/** Uploads whose digest is kept between their parts; others are read again at their end. */
const maxKept = 256;

/** The state of sha256 after the bytes that arrived so far, of the uploads that were touched last. */
export class RunningDigests {
  readonly #states = new Map<AssetId, { readonly bytes: number; readonly hash: Hash }>();

  /** The state after exactly `bytes`, now the caller's; undefined when it is not known. */
  take(id: AssetId, bytes: number): Hash | undefined {
    if (bytes === 0) return createHash("sha256");
    const state = this.#states.get(id);
    this.#states.delete(id);
    return state?.bytes === bytes ? state.hash : undefined;
  }

  put(id: AssetId, bytes: number, hash: Hash): void {
    this.#states.delete(id);
    this.#states.set(id, { bytes, hash });
    if (this.#states.size <= maxKept) return;
    const { value: oldest } = this.#states.keys().next();
    if (oldest !== undefined) this.#states.delete(oldest);
  }

  drop(id: AssetId): void {
    this.#states.delete(id);
  }
}
