import { type AssetId, ServiceError } from "@unkey/base";
import type { Metrics } from "@unkey/daemon";

const maxStreams = 16;

/** Who works on uploads at this moment: one call on each upload, and a bounded number of streams in all. */
export class UploadTurns {
  readonly #metrics: Metrics;
  readonly #busy = new Map<AssetId, { readonly abort: AbortController; readonly ended: Promise<void> }>();
  #streams = 0;

  constructor(metrics: Metrics) {
    this.#metrics = metrics;
    this.#countStreams(0);
  }

  /** True while a call works on the upload. */
  isTaken(id: AssetId): boolean {
    return this.#busy.has(id);
  }

  /** Runs `body` as the only call on the upload; its signal also ends with `end`. Throws UPLOAD_BUSY. */
  async alone<T>(id: AssetId, signal: AbortSignal, body: (signal: AbortSignal) => Promise<T>): Promise<T> {
    if (this.#busy.has(id)) throw new ServiceError("UPLOAD_BUSY", `another call works on the upload ${id}`);
    const abort = new AbortController();
    const { promise, resolve } = Promise.withResolvers<void>();
    this.#busy.set(id, { abort, ended: promise });
    try {
      return await body(AbortSignal.any([signal, abort.signal]));
    } finally {
      this.#busy.delete(id);
      resolve();
    }
  }

  /** Ends the call that works on the upload, if any, and waits until it has ended. */
  async end(id: AssetId, reason: ServiceError): Promise<void> {
    const working = this.#busy.get(id);
    working?.abort.abort(reason);
    await working?.ended;
  }

  /** Runs `body` as one of the streams. Throws ASSET_STORE_BUSY. */
  async inStream<T>(body: () => Promise<T>): Promise<T> {
    if (this.#streams >= maxStreams) {
      throw new ServiceError("ASSET_STORE_BUSY", `${maxStreams} uploads are under way`);
    }
    this.#countStreams(1);
    try {
      return await body();
    } finally {
      this.#countStreams(-1);
    }
  }

  #countStreams(by: 1 | 0 | -1): void {
    this.#streams += by;
    this.#metrics.gauge("unkey_assets_uploads", "Uploads under way.").set(this.#streams);
  }
}
