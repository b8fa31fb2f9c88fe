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

/** Values in one message: more of them take many times the memory of their bytes, and the time of everybody. */
const maxValues = 2_000_000;

/**
 * Messages as parsed JSON, until the stream ends; a torn one at its end is dropped. Throws FrameError at a frame over `maxBytes`, of
 * too many values or without JSON.
 */
export async function* readFrames(stream: Readable, maxBytes: number): AsyncGenerator {
  // One buffer that grows: a list of chunks would cost a hundred bytes for each one that the other side sends.
  let held = Buffer.allocUnsafe(64 * 1024);
  let end = 0;
  let wanted = lengthBytes;
  let isBody = false;
  for await (const chunk of stream as AsyncIterable<Buffer>) {
    if (end + chunk.length > held.length) {
      const larger = Buffer.allocUnsafe(Math.max(2 * held.length, end + chunk.length));
      held.copy(larger, 0, 0, end);
      held = larger;
    }
    end += chunk.copy(held, end);
    let at = 0;
    while (end - at >= wanted) {
      const taken = held.subarray(at, (at += wanted));
      if (isBody) {
        yield parsed(taken);
        wanted = lengthBytes;
      } else {
        wanted = taken.readUInt32BE(0);
        if (wanted > maxBytes) throw new FrameError(`a frame of ${wanted} bytes is over ${maxBytes}`);
      }
      isBody = !isBody;
    }
    if (at === 0) continue;
    held.copyWithin(0, at, end);
    end -= at;
  }
}

function parsed(body: Buffer): unknown {
  if (body.length > maxValues && countsMore(body)) throw new FrameError(`a frame has more than ${maxValues} values`);
  try {
    return JSON.parse(body.toString("utf8"));
  } catch (cause) {
    throw new FrameError("a frame is not JSON", { cause });
  }
}

/** Whether what separates or opens values is there more often; what stands in texts counts too. */
function countsMore(body: Buffer): boolean {
  let values = 0;
  for (const byte of body) {
    if ((byte === 0x2c || byte === 0x5b || byte === 0x7b) && ++values > maxValues) return true; // , [ {
  }
  return false;
}
