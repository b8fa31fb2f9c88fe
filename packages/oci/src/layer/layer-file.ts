import { spawn, spawnSync } from "node:child_process";
import { once } from "node:events";
import { closeSync, constants, openSync, readSync, rmSync } from "node:fs";
import { isErrno, kib, ServiceError } from "@unkey/base";
import { InvalidInput } from "../invalid-input.ts";
import { type Compression, decompress } from "./decompress.ts";

const readBytes = 512 * kib;
const maxWords = 1024;

/** A layer as it travels, to be read from an open file, a pipe or a socket that blocks. */
export interface LayerFile {
  readonly fd: number;
  readonly compression: Compression;
}

/**
 * The tar stream of a layer, in chunks that hold until the next is asked for; the file is read to its end. It waits without letting
 * others run, for a process that has nothing else to do: reads that go through the event loop cost as much again as all else that
 * is done with their bytes. gzip is left to `igzip`, a child of this process, which reads the file itself and writes into a pipe that is
 * named `pipePath` for a moment. Throws InvalidInput on damaged compression and ROOTFS_TOOL_MISSING.
 */
export async function* readTar({ fd, compression }: LayerFile, pipePath: string): AsyncGenerator<Buffer> {
  if (compression === "gzip") yield* throughIgzip(fd, pipePath);
  else if (compression === "none") yield* reads(fd);
  else yield* decompress(copied(reads(fd)), compression);
  for await (const _ of reads(fd)); // what lies behind the end of the compressed stream
}

async function* throughIgzip(fd: number, pipePath: string): AsyncGenerator<Buffer> {
  const pipe = openPipe(pipePath);
  const child = spawn("igzip", ["-dc"], { stdio: [fd, pipe.writeFd, "pipe"] });
  closeSync(pipe.writeFd);
  let words = "";
  child.stderr?.setEncoding("utf8").on("data", (text: string) => {
    words = (words + text).slice(-maxWords);
  });
  const ended = once(child, "close") as Promise<[number | null, NodeJS.Signals | null]>;
  ended.catch(() => {}); // told below
  try {
    yield* reads(pipe.readFd);
    const [code, signal] = await ended.catch(rethrowMissing);
    if (code === 1) throw new InvalidInput(`its compression is damaged (${words.replace(/^igzip: /, "").trim()})`);
    if (code !== 0) throw new Error(`igzip ended with ${signal ?? code}: ${words}`);
  } finally {
    child.kill("SIGKILL");
    closeSync(pipe.readFd);
  }
}

/** The pipes that Node makes do not block. */
function openPipe(path: string): { readonly readFd: number; readonly writeFd: number } {
  const { error, status, stderr } = spawnSync("mkfifo", ["--mode=600", path], { encoding: "utf8" });
  if (status !== 0) throw new Error(`mkfifo ended with ${status}: ${stderr}`, { cause: error });
  try {
    const writeFd = openSync(path, constants.O_RDWR); // to write only would wait for a reader
    return { readFd: openSync(path, constants.O_RDONLY), writeFd };
  } finally {
    rmSync(path);
  }
}

/** Everything to the end of a file that blocks. */
async function* reads(fd: number): AsyncGenerator<Buffer> {
  const buffer = Buffer.allocUnsafeSlow(readBytes);
  for (let isOpen = true; isOpen; ) {
    let filled = 0;
    while (filled < readBytes) {
      const count = readSync(fd, buffer, filled, readBytes - filled, null);
      isOpen = count > 0;
      if (!isOpen) break;
      filled += count;
    }
    if (filled > 0) yield buffer.subarray(0, filled);
  }
}

/** For readers that hold more than one chunk. */
async function* copied(chunks: AsyncIterable<Buffer>): AsyncGenerator<Buffer> {
  for await (const chunk of chunks) yield Buffer.from(chunk);
}

function rethrowMissing(error: unknown): never {
  if (!isErrno(error, "ENOENT")) throw error;
  throw new ServiceError("ROOTFS_TOOL_MISSING", "igzip is missing on the host: install isal", { cause: error });
}
