import type { Readable } from "node:stream";

/*
 * Messages between builderd and its worker: four bytes of length, big endian, then that much JSON. What comes from the worker is
 * hostile: a length is looked at before memory is spent on it, and whoever reads checks each message's shape.
 */

const lengthBytes = 4;

export function encodeFrame(message: unknown): Buffer {
  const body = Buffer.from(JSON.stringify(message), "utf8");
  const frame = Buffer.allocUnsafe(lengthBytes + body.length);
  frame.writeUInt32BE(body.length, 0);
  body.copy(frame, lengthBytes);
  return frame;
}

/** The stream is not what its reader was promised. */
export class FrameError extends Error {
  override readonly name = "FrameError";
}

/** Messages as parsed JSON, until the stream ends; a torn one at its end is dropped. Throws FrameError at a frame over `maxBytes` or without JSON. */
export async function* readFrames(stream: Readable, maxBytes: number): AsyncGenerator {
  let parts: Buffer[] = [];
  let held = 0;
  let wanted = lengthBytes;
  let isBody = false;
  for await (const chunk of stream as AsyncIterable<Buffer>) {
    parts.push(chunk);
    held += chunk.length;
    if (held < wanted) continue;
    let rest = parts.length === 1 ? chunk : Buffer.concat(parts, held);
    while (rest.length >= wanted) {
      const taken = rest.subarray(0, wanted);
      rest = rest.subarray(wanted);
      if (isBody) {
        yield parsed(taken);
        wanted = lengthBytes;
      } else {
        wanted = taken.readUInt32BE(0);
        if (wanted > maxBytes) throw new FrameError(`a frame of ${wanted} bytes is over ${maxBytes}`);
      }
      isBody = !isBody;
    }
    parts = [rest];
    held = rest.length;
  }
}

function parsed(body: Buffer): unknown {
  try {
    return JSON.parse(body.toString("utf8"));
  } catch (cause) {
    throw new FrameError("a frame is not JSON", { cause });
  }
}
