import { closeSync, constants, type FSWatcher, fstatSync, openSync, readSync, watch } from "node:fs";
import { maxControlLineBytes } from "./guest-report.ts";

/** An init writes some hundred bytes in its life; a log beyond this is a guest that fills the host's disk. */
export const maxControlLogBytes = 256 * 1024;

const chunkBytes = 16 * 1024;

export interface ControlLogListener {
  line(line: string): void;
  /** The log has outgrown `maxControlLogBytes`; nothing more is read. */
  overflow(): void;
}

/**
 * Reads the lines that a VM's monitor appends to its control log, which is the one durable record of what the guest said.
 * The file belongs to the confined monitor: links are not followed and only a plain file is read.
 */
export class ControlLog {
  readonly #fd: number;
  readonly #listener: ControlLogListener;
  readonly #buffer = Buffer.allocUnsafe(chunkBytes);
  #watcher: FSWatcher | undefined;
  #offset = 0;
  /** The line that is not complete yet; undefined while the rest of an overlong one is skipped. */
  #partial: Buffer | undefined = Buffer.alloc(0);

  constructor(path: string, listener: ControlLogListener) {
    this.#listener = listener;
    this.#fd = openSync(path, constants.O_RDONLY | constants.O_NOFOLLOW | constants.O_NONBLOCK);
    if (!fstatSync(this.#fd).isFile()) {
      closeSync(this.#fd);
      throw new Error(`${path} is not a plain file`);
    }
    // Watched before the first read: what arrives in between is read twice by nobody and missed by nobody.
    this.#watcher = watch(path, { persistent: false }, () => this.read());
    this.#watcher.on("error", () => undefined); // the file went away with its folder
  }

  /** Takes in what has been appended since the last time. */
  read(): void {
    while (this.#watcher !== undefined) {
      const count = readSync(this.#fd, this.#buffer, 0, chunkBytes, this.#offset);
      if (count === 0) return;
      this.#offset += count;
      if (this.#offset > maxControlLogBytes) {
        this.close();
        this.#listener.overflow();
        return;
      }
      this.#take(this.#buffer.subarray(0, count));
    }
  }

  close(): void {
    if (this.#watcher === undefined) return;
    this.#watcher.close();
    this.#watcher = undefined;
    closeSync(this.#fd);
  }

  #take(chunk: Buffer): void {
    let start = 0;
    for (let end = chunk.indexOf(10); end !== -1; end = chunk.indexOf(10, start)) {
      this.#extend(chunk.subarray(start, end));
      const line = this.#partial?.toString("utf8");
      this.#partial = Buffer.alloc(0);
      start = end + 1;
      if (line !== undefined) this.#listener.line(line);
    }
    this.#extend(chunk.subarray(start));
  }

  #extend(bytes: Buffer): void {
    if (this.#partial === undefined || this.#partial.length + bytes.length > maxControlLineBytes) {
      this.#partial = undefined;
    } else if (bytes.length > 0) {
      this.#partial = Buffer.concat([this.#partial, bytes]);
    }
  }
}

/** The complete lines of a control log whose VM is over; none when there is no such file. */
export function readControlLog(path: string): string[] {
  const lines: string[] = [];
  try {
    const log = new ControlLog(path, { line: (line) => lines.push(line), overflow: () => undefined });
    log.read();
    log.close();
  } catch {
    return []; // never written, or removed with the VM
  }
  return lines;
}
