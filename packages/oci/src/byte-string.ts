/**
 * File names, link targets and attribute names as bytes: one character per byte (latin1). Linux names are bytes, not
 * text; decoding them as UTF-8 would merge distinct names and change others.
 */
export type ByteString = string;

export function toBytes(text: ByteString): Buffer {
  return Buffer.from(text, "latin1");
}

export function fromUtf8(text: string): ByteString {
  return Buffer.from(text, "utf8").toString("latin1");
}

/** `text` for a message: decoded, quoted, control characters escaped, cut to 120 characters. */
export function printable(text: ByteString): string {
  const decoded = toBytes(text).toString("utf8");
  return JSON.stringify(decoded.length > 120 ? `${decoded.slice(0, 119)}…` : decoded);
}
