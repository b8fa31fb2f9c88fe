import { constants, type FileHandle, lstat, open, readdir, rename, rm, writeFile } from "node:fs/promises";
import { basename, join } from "node:path";
import type { Clock } from "@unkey/base";
import { vmFiles } from "@unkey/vmm";
import type { VmPaths } from "../vm-paths.ts";

export type LogSource = "app" | "console";

/** Bytes as they were written; `droppedBytes` of output that is kept no more came before them. */
export interface LogPiece {
  readonly data: Uint8Array;
  readonly droppedBytes: number;
}

export interface StreamOptions {
  /** Stay for what is still to come, until the VM is over. */
  readonly follow: boolean;
  /** Only the newest lines; 0 for all that are kept. */
  readonly tailLines: number;
  readonly isOver: () => boolean;
  readonly signal: AbortSignal;
}

const pieceBytes = 64 * 1024;
const pollMs = 100;
const lastLineCount = 20;
const maxLineLength = 400;
const tailBytes = 16 * 1024;

/** A stretch of a log: the file being written, or the one before it. */
interface Segment {
  readonly path: string;
  /** Of its first byte in all that was ever written. */
  readonly start: number;
  readonly size: number;
}

/**
 * Output of one VM. The hypervisor appends to a file in a folder that the VM's user owns, so that file is opened with
 * suspicion. When it has grown to the limit its content moves to `<name>.log.<start>`, which replaces the one before, and
 * the file is emptied: a chatty guest holds two segments and what it writes between two passes, never the disk.
 */
export class VmLogs {
  readonly #paths: VmPaths;
  readonly #ownerUid: number;
  readonly #limitBytes: number;
  readonly #clock: Clock;

  constructor(
    paths: VmPaths,
    options: { readonly ownerUid: number; readonly limitBytes: number; readonly clock: Clock },
  ) {
    this.#paths = paths;
    this.#ownerUid = options.ownerUid;
    this.#limitBytes = options.limitBytes;
    this.#clock = options.clock;
  }

  /** One pass: moves aside whatever has grown to the limit. */
  async bound(): Promise<void> {
    for (const source of ["app", "console"] as const) {
      const path = this.#livePath(source);
      const found = await lstat(path).catch(() => undefined);
      if (found && found.size >= this.#limitBytes) await this.#moveAside(source, path);
    }
  }

  async *stream(source: LogSource, options: StreamOptions): AsyncGenerator<LogPiece> {
    const { follow, tailLines, isOver, signal } = options;
    let position = tailLines > 0 ? await this.#tailStart(source, tailLines) : 0;
    for (let last = !follow; !signal.aborted; ) {
      const piece = await this.#read(source, position);
      if (piece) {
        position = piece.end;
        yield piece;
      } else if (last) {
        return;
      } else {
        last = isOver(); // what was written before the end is read once more
        if (!last) await this.#clock.sleep(pollMs, signal).catch(() => undefined);
      }
    }
  }

  /** The newest lines of program and console, for a failure's report: printable, each marked with its origin. */
  async lastLines(): Promise<string[]> {
    const lines: string[] = [];
    for (const source of ["app", "console"] as const) {
      const segments = await this.#segments(source);
      const end = segments.at(-1);
      if (!end) continue;
      const text = await this.#bytes(segments, Math.max(0, end.start + end.size - tailBytes));
      const kept = text
        .toString("utf8")
        .split("\n")
        .map(printable)
        .filter((line) => line !== "");
      lines.push(...kept.slice(-lastLineCount).map((line) => `${source}: ${line}`));
    }
    return lines;
  }

  #livePath(source: LogSource): string {
    const files = vmFiles(this.#paths.runDir);
    return source === "app" ? files.appLog : files.consoleLog;
  }

  /** Where the live file's first byte stands follows from the segment before it. */
  async #segments(source: LogSource): Promise<Segment[]> {
    const live = this.#livePath(source);
    const prefix = `${basename(live)}.`;
    const segments: Segment[] = [];
    for (const name of await readdir(this.#paths.dir).catch(() => [])) {
      const digits = name.startsWith(prefix) ? name.slice(prefix.length) : "";
      if (!/^\d{1,15}$/.test(digits)) continue;
      const path = join(this.#paths.dir, name);
      const found = await lstat(path).catch(() => undefined);
      if (found) segments.push({ path, start: Number(digits), size: found.size });
    }
    segments.sort((a, b) => a.start - b.start);
    const before = segments.at(-1);
    const size = (await lstat(live).catch(() => undefined))?.size ?? 0;
    return [...(before ? [before] : []), { path: live, start: before ? before.start + before.size : 0, size }];
  }

  async #read(source: LogSource, position: number): Promise<(LogPiece & { readonly end: number }) | undefined> {
    for (const segment of await this.#segments(source)) {
      if (position >= segment.start + segment.size) continue;
      const from = Math.max(position, segment.start);
      const data = await this.#readFile(segment, from - segment.start, pieceBytes);
      if (data.length > 0) return { data, droppedBytes: from - position, end: from + data.length };
    }
    return undefined;
  }

  async #tailStart(source: LogSource, lineCount: number): Promise<number> {
    const segments = await this.#segments(source);
    const start = segments[0]?.start ?? 0;
    const content = await this.#bytes(segments, start);
    // A line break at the very end closes the last line and begins none.
    let at = content.at(-1) === 0x0a ? content.length - 1 : content.length;
    for (let found = 0; at > 0; at--) {
      if (content[at - 1] === 0x0a && ++found === lineCount) break;
    }
    return start + at;
  }

  /** Everything from `position` on. Bounded, because the segments are. */
  async #bytes(segments: readonly Segment[], position: number): Promise<Buffer> {
    const parts: Buffer[] = [];
    for (const segment of segments) {
      const offset = Math.max(0, position - segment.start);
      parts.push(await this.#readFile(segment, offset, Math.min(segment.size, 2 * this.#limitBytes)));
    }
    return Buffer.concat(parts);
  }

  async #readFile(segment: Segment, offset: number, maxBytes: number): Promise<Buffer> {
    const length = Math.min(maxBytes, segment.size - offset);
    if (length <= 0) return Buffer.alloc(0);
    await using file = await this.#openSafely(segment.path, constants.O_RDONLY);
    if (!file) return Buffer.alloc(0);
    const { bytesRead, buffer } = await file.read(Buffer.alloc(length), 0, length, offset);
    return buffer.subarray(0, bytesRead);
  }

  async #moveAside(source: LogSource, path: string): Promise<void> {
    await using file = await this.#openSafely(path, constants.O_RDWR);
    if (!file) return;
    const segments = await this.#segments(source);
    const { size } = await file.stat();
    const keptBytes = Math.min(size, this.#limitBytes);
    const start = (segments.at(-1)?.start ?? 0) + size - keptBytes;
    const { buffer, bytesRead } = await file.read(Buffer.alloc(keptBytes), 0, keptBytes, size - keptBytes);
    const target = join(this.#paths.dir, `${basename(path)}.${start}`);
    await writeFile(`${target}.new`, buffer.subarray(0, bytesRead), { mode: 0o600 });
    await rename(`${target}.new`, target);
    await file.truncate(0); // what was written since the read, microseconds ago, is lost
    for (const old of segments.slice(0, -1)) if (old.path !== target) await rm(old.path, { force: true });
  }

  /** A compromised hypervisor may put anything in its folder: only a plain file of the VM's own user is opened. */
  async #openSafely(path: string, mode: number): Promise<FileHandle | undefined> {
    const file = await open(path, mode | constants.O_NOFOLLOW | constants.O_NONBLOCK).catch(() => undefined);
    const found = await file?.stat();
    const ours = found?.isFile() && (found.uid === this.#ownerUid || found.uid === process.getuid?.());
    if (ours) return file;
    await file?.close();
    return undefined;
  }
}

/** Guests write what they like; terminals obey control characters. */
function printable(line: string): string {
  return line.replaceAll(/\p{Cc}/gu, "").slice(0, maxLineLength);
}
