import { open } from "node:fs/promises";

const chunkBytes = 1024 * 1024;
/** Zeros of at least so many bytes, on such a boundary, become a hole. */
const holeBytes = 64 * 1024;
const zeros = Buffer.alloc(holeBytes);

/**
 * Copies a file to a new one, durably, and leaves out what is zero: a root filesystem image is mostly that. Node cannot ask
 * where the holes of the source are (SEEK_DATA), but zeros read the same whether they are stored or not.
 */
export async function copySparse(from: string, to: string): Promise<void> {
  await using source = await open(from, "r");
  await using target = await open(to, "wx", 0o444);
  const { size } = await source.stat();
  await target.truncate(size);
  const buffer = Buffer.alloc(Math.min(chunkBytes, Math.max(1, size)));
  for (let at = 0; at < size; ) {
    const { bytesRead } = await source.read(buffer, 0, buffer.length, at);
    if (bytesRead === 0) throw new Error(`${from} became shorter while it was copied`);
    for (const { start, end } of dataIn(buffer.subarray(0, bytesRead))) {
      for (let done = start; done < end; ) {
        const { bytesWritten } = await target.write(buffer, done, end - done, at + done);
        done += bytesWritten;
      }
    }
    at += bytesRead;
  }
  await target.chmod(0o444); // whatever the umask says
  await target.sync();
}

/** The stretches of `bytes` that are not zero, in blocks of `holeBytes`. */
function* dataIn(bytes: Buffer): Generator<{ start: number; end: number }> {
  let start: number | undefined;
  for (let at = 0; at < bytes.length; at += holeBytes) {
    const block = bytes.subarray(at, at + holeBytes);
    const isZero = block.equals(block.length === holeBytes ? zeros : zeros.subarray(0, block.length));
    if (isZero && start !== undefined) {
      yield { start, end: at };
      start = undefined;
    } else if (!isZero) start ??= at;
  }
  if (start !== undefined) yield { start, end: bytes.length };
}
