import { mkdir, open, readdir, readFile, unlink } from "node:fs/promises";
import { join } from "node:path";
import type { LogFile, LogFolder } from "../ports.ts";

/** A folder of mode 0700 with files of mode 0600. */
export class DiskLogFolder implements LogFolder {
  readonly #path: string;

  private constructor(path: string) {
    this.#path = path;
  }

  static async open(path: string): Promise<DiskLogFolder> {
    await mkdir(path, { recursive: true, mode: 0o700 });
    return new DiskLogFolder(path);
  }

  list(): Promise<string[]> {
    return readdir(this.#path);
  }

  read(name: string): Promise<Uint8Array> {
    return readFile(join(this.#path, name));
  }

  async create(name: string): Promise<LogFile> {
    const file = await open(join(this.#path, name), "ax", 0o600);
    return {
      append: async (bytes) => {
        for (let written = 0; written < bytes.length; ) {
          written += (await file.write(bytes, written)).bytesWritten;
        }
      },
      sync: () => file.datasync(),
      close: () => file.close(),
    };
  }

  remove(name: string): Promise<void> {
    return unlink(join(this.#path, name));
  }

  async syncEntries(): Promise<void> {
    const folder = await open(this.#path, "r");
    try {
      await folder.sync();
    } finally {
      await folder.close();
    }
  }
}
