import type { LogFile, LogFolder } from "../ports.ts";

/** Thrown by every operation from the chosen moment on: the power is gone. */
export class PowerLoss extends Error {}
/** Thrown by an operation that was told to fail; the next one works. */
export class DiskFault extends Error {}

interface MemoryFile {
  synced: Uint8Array;
  unsynced: Uint8Array;
  entrySynced: boolean;
}

/**
 * A log folder in memory that keeps apart what was synced and what was not, so that a test can cut the power between any two
 * operations and look at what a disk would still hold.
 */
export class MemoryLogFolder implements LogFolder {
  #files = new Map<string, MemoryFile>();
  #operations = 0;
  #powerLossAt = Number.POSITIVE_INFINITY;
  #faults = new Set<number>();

  get operations(): number {
    return this.#operations;
  }

  /** Operation `count` from now on, and all after it, do not happen. */
  cutPowerAfter(count: number): void {
    this.#powerLossAt = this.#operations + count;
  }

  /** Operation `count` from now on fails; a failed append may leave half of its bytes. */
  failAfter(count: number): void {
    this.#faults.add(this.#operations + count);
  }

  /**
   * What the disk holds when the power is back: all that was synced, `keep` (0 to 1) of the bytes that were not, and
   * files whose entry was not synced only when `keepEntries`.
   */
  afterPowerLoss(keep: number, keepEntries: boolean): MemoryLogFolder {
    const restarted = new MemoryLogFolder();
    for (const [name, file] of this.#files) {
      if (!file.entrySynced && !keepEntries) continue;
      const rest = file.unsynced.subarray(0, Math.floor(file.unsynced.length * keep));
      restarted.#files.set(name, {
        synced: Buffer.concat([file.synced, rest]),
        unsynced: new Uint8Array(),
        entrySynced: true,
      });
    }
    return restarted;
  }

  /** Flips one bit of a synced byte. */
  damage(name: string, offset: number): void {
    const file = this.#files.get(name);
    const byte = file?.synced[offset];
    if (file === undefined || byte === undefined) throw new RangeError(`${name} has no byte ${offset}`);
    file.synced[offset] = byte ^ 1;
  }

  async list(): Promise<string[]> {
    this.#step();
    return [...this.#files.keys()];
  }

  async read(name: string): Promise<Uint8Array> {
    this.#step();
    const file = this.#file(name);
    return Buffer.concat([file.synced, file.unsynced]);
  }

  async create(name: string): Promise<LogFile> {
    this.#step();
    if (this.#files.has(name)) throw new DiskFault(`${name} exists`);
    const file: MemoryFile = { synced: new Uint8Array(), unsynced: new Uint8Array(), entrySynced: false };
    this.#files.set(name, file);
    return {
      append: async (bytes) => {
        try {
          this.#step();
        } catch (error) {
          const half = bytes.subarray(0, Math.floor(bytes.length / 2));
          file.unsynced = Buffer.concat([file.unsynced, half]);
          throw error;
        }
        file.unsynced = Buffer.concat([file.unsynced, bytes]);
      },
      sync: async () => {
        this.#step();
        file.synced = Buffer.concat([file.synced, file.unsynced]);
        file.unsynced = new Uint8Array();
      },
      close: async () => undefined,
    };
  }

  async remove(name: string): Promise<void> {
    this.#step();
    if (!this.#files.delete(name)) throw new DiskFault(`${name} does not exist`);
  }

  async syncEntries(): Promise<void> {
    this.#step();
    for (const file of this.#files.values()) file.entrySynced = true;
  }

  #file(name: string): MemoryFile {
    const file = this.#files.get(name);
    if (file === undefined) throw new DiskFault(`${name} does not exist`);
    return file;
  }

  #step(): void {
    this.#operations += 1;
    if (this.#operations >= this.#powerLossAt) throw new PowerLoss();
    if (this.#faults.delete(this.#operations)) throw new DiskFault("told to fail");
  }
}
