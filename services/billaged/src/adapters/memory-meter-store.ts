import type { Checkpoint, MeterStore, PendingBatch } from "../ports.ts";

/** A store in memory that outlives the services that open it, and can be told to fail before or after it has saved. */
export class MemoryMeterStore implements MeterStore {
  readonly logEpoch = 1n;
  #checkpoint: string | undefined;
  #outbox = new Map<string, PendingBatch>();
  #fault: "before" | "after" | "never" = "never";
  /** Every batch that was ever saved, by id, as hex: the same id must always bring the same bytes. */
  readonly history = new Map<string, string>();

  /** The next save fails, before or after it has happened; "never" takes it back. */
  failNextSave(when: "before" | "after" | "never"): void {
    this.#fault = when;
  }

  async checkpoint(): Promise<Checkpoint | undefined> {
    return this.#checkpoint === undefined ? undefined : (JSON.parse(this.#checkpoint) as Checkpoint);
  }

  async save(batches: readonly PendingBatch[], checkpoint?: Checkpoint): Promise<void> {
    const fault = this.#fault;
    this.#fault = "never";
    if (fault === "before") throw new Error("told to fail before saving");
    for (const batch of batches) {
      const bytes = Buffer.from(batch.zstd).toString("hex");
      const known = this.history.get(batch.batchId);
      if (known !== undefined && known !== bytes) throw new Error(`batch ${batch.batchId} changed its bytes`);
      if (known === undefined) this.#outbox.set(batch.batchId, batch);
      this.history.set(batch.batchId, bytes);
    }
    if (checkpoint !== undefined) this.#checkpoint = JSON.stringify(checkpoint);
    if (fault === "after") throw new Error("told to fail after saving");
  }

  async pending(afterSeq: number, limit: number): Promise<PendingBatch[]> {
    const pending = [...this.#outbox.values()].filter(({ seq }) => seq > afterSeq);
    return pending.sort((a, b) => a.seq - b.seq).slice(0, limit);
  }

  async settle(batchId: string): Promise<void> {
    this.#outbox.delete(batchId);
  }

  async backlog(): Promise<{ batches: number; bytes: number }> {
    let bytes = 0;
    for (const { zstd } of this.#outbox.values()) bytes += zstd.length;
    return { batches: this.#outbox.size, bytes };
  }

  async [Symbol.asyncDispose](): Promise<void> {}
}
