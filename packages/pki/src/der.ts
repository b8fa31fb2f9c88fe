/**
 * Writes the few ASN.1 DER values that a certificate consists of (ITU-T X.690). Nothing here reads DER: parsing what
 * others wrote is OpenSSL's work, through node:crypto.
 */
export type Der = Uint8Array<ArrayBuffer>;

function tagged(tag: number, content: Uint8Array): Der {
  const length: number[] = [];
  if (content.length < 0x80) length.push(content.length);
  else {
    for (let rest = content.length; rest > 0; rest = Math.floor(rest / 256)) length.unshift(rest % 256);
    length.unshift(0x80 | length.length);
  }
  return concat([Uint8Array.of(tag, ...length), content]);
}

export function concat(parts: readonly Uint8Array[]): Der {
  const whole = new Uint8Array(parts.reduce((sum, part) => sum + part.length, 0));
  let at = 0;
  for (const part of parts) {
    whole.set(part, at);
    at += part.length;
  }
  return whole;
}

const utf8 = new TextEncoder();

export const sequence = (...parts: Uint8Array[]): Der => tagged(0x30, concat(parts));
export const set = (...parts: Uint8Array[]): Der => tagged(0x31, concat(parts));
export const octetString = (content: Uint8Array): Der => tagged(0x04, content);
export const utf8String = (text: string): Der => tagged(0x0c, utf8.encode(text));
export const booleanTrue: Der = tagged(0x01, Uint8Array.of(0xff));
/** `[n] EXPLICIT` or a constructed `[n] IMPLICIT`. */
export const context = (n: number, content: Uint8Array): Der => tagged(0xa0 | n, content);
/** A primitive `[n] IMPLICIT`. */
export const contextPrimitive = (n: number, content: Uint8Array): Der => tagged(0x80 | n, content);
/** An IA5String's or a URI's bytes; the caller has checked that it is ASCII. */
export const ascii = (text: string): Uint8Array => utf8.encode(text);

/** A non-negative INTEGER from big-endian bytes. */
export function integer(bigEndian: Uint8Array): Der {
  let start = 0;
  while (start < bigEndian.length - 1 && bigEndian[start] === 0) start++;
  const digits = bigEndian.subarray(start);
  const first = digits[0] ?? 0;
  return tagged(0x02, first >= 0x80 ? concat([Uint8Array.of(0), digits]) : digits);
}

/** A BIT STRING of whole bytes, of which the last `unusedBits` do not count. */
export function bitString(content: Uint8Array, unusedBits = 0): Der {
  return tagged(0x03, concat([Uint8Array.of(unusedBits), content]));
}

/** An OBJECT IDENTIFIER from its dotted form. */
export function oid(dotted: string): Der {
  const [first = 0, second = 0, ...rest] = dotted.split(".").map(Number);
  const bytes: number[] = [first * 40 + second];
  for (const arc of rest) {
    const groups = [arc % 128];
    for (let left = Math.floor(arc / 128); left > 0; left = Math.floor(left / 128)) groups.unshift(0x80 | (left % 128));
    bytes.push(...groups);
  }
  return tagged(0x06, Uint8Array.from(bytes));
}

/** A Time as RFC 5280 §4.1.2.5 wants it: UTCTime up to 2049, GeneralizedTime from 2050. */
export function time(atMs: number): Der {
  const digits = new Date(atMs).toISOString().replaceAll(/\.\d+|[-:T]/g, "");
  return Number(digits.slice(0, 4)) < 2050 ? tagged(0x17, ascii(digits.slice(2))) : tagged(0x18, ascii(digits));
}
