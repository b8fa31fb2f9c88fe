/** The part of a resource that is sent: `end` is exclusive. */
export interface ByteRange {
  readonly start: number;
  readonly end: number;
}

/**
 * Reads a Range header (RFC 9110 §14.2). Undefined where the whole resource is to be sent: no header, another unit, or
 * several ranges, which a server may ignore.
 */
export function byteRange(header: string | undefined, size: number): ByteRange | "unsatisfiable" | undefined {
  const match = /^bytes=\s*(\d{0,15})-(\d{0,15})\s*$/.exec(header ?? "");
  if (!match) return undefined;
  const [, first = "", last = ""] = match;
  if (first === "" && last === "") return undefined;
  if (first === "") {
    const length = Math.min(Number(last), size);
    return length === 0 ? "unsatisfiable" : { start: size - length, end: size };
  }
  const start = Number(first);
  const end = last === "" ? size : Math.min(Number(last) + 1, size);
  return start >= size || end <= start ? "unsatisfiable" : { start, end };
}

/** Reads the Content-Range of a chunk as the distribution specification writes it: `<first>-<last>`, both inclusive. */
export function chunkRange(header: string): ByteRange | undefined {
  const match = /^(\d{1,15})-(\d{1,15})$/.exec(header);
  if (!match) return undefined;
  const range = { start: Number(match[1]), end: Number(match[2]) + 1 };
  return range.end > range.start ? range : undefined;
}
