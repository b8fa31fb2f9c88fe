import type { ByteString } from "../byte-string.ts";
import { InvalidInput } from "../invalid-input.ts";

/*
 * The records of a PAX extended header, POSIX.1-2017 "pax Extended Header". Keys and values stay bytes.
 */

export interface PaxRecords {
  /** The last record of each key. */
  readonly values: ReadonlyMap<ByteString, Buffer>;
  /** True when records of GNU's sparse files are among them. */
  readonly sparse: boolean;
  /** The values of GNU.sparse.offset and GNU.sparse.numbytes, which come again and again, in their order. */
  readonly sparsePairs: readonly string[];
}

const space = 0x20;
const newline = 0x0a;
const equalsSign = 0x3d;

/** Reads records `<length> <key>=<value>\n`. Values are views of `body`. Throws InvalidInput on any other shape. */
export function decodePax(body: Buffer): PaxRecords {
  const values = new Map<ByteString, Buffer>();
  const sparsePairs: string[] = [];
  let sparse = false;
  for (let at = 0; at < body.length; ) {
    const start = at;
    let length = 0;
    for (; at < body.length && at - start < 9; at++) {
      const digit = (body[at] ?? 0) - 0x30;
      if (digit < 0 || digit > 9) break;
      length = length * 10 + digit;
    }
    const end = start + length;
    if (body[at] !== space || body[start] === 0x30 || end > body.length || end <= at + 1 || body[end - 1] !== newline) {
      throw new InvalidInput("an extended header record has a wrong length");
    }
    const equals = body.indexOf(equalsSign, at);
    if (equals < 0 || equals >= end - 1 || equals === at + 1) {
      throw new InvalidInput("an extended header record has no key");
    }
    const key = body.toString("latin1", at + 1, equals);
    const value = body.subarray(equals + 1, end - 1);
    values.set(key, value);
    if (key.startsWith("GNU.sparse.")) {
      sparse = true;
      if (key === "GNU.sparse.offset" || key === "GNU.sparse.numbytes") sparsePairs.push(value.toString("latin1"));
    }
    at = end;
  }
  return { values, sparse, sparsePairs };
}

export function encodePax(records: Iterable<readonly [ByteString, Buffer]>): Buffer {
  const parts: Buffer[] = [];
  for (const [key, value] of records) {
    const rest = 1 + key.length + 1 + value.length + 1; // space, "=", newline
    let length = rest + String(rest).length;
    if (String(length).length !== String(rest).length) length = rest + String(length).length;
    parts.push(Buffer.from(`${length} ${key}=`, "latin1"), value, Buffer.from("\n"));
  }
  return Buffer.concat(parts);
}

/** A record's value; undefined for an empty one, which means that the header's own field holds. */
export function textOf(pax: PaxRecords | undefined, key: string): ByteString | undefined {
  const value = pax?.values.get(key)?.toString("latin1");
  return value === "" ? undefined : value;
}

/** A record's decimal value. Throws InvalidInput when it is something else or over `max`. */
export function integerOf(pax: PaxRecords | undefined, key: string, max: number): number | undefined {
  const value = textOf(pax, key);
  if (value === undefined) return undefined;
  const number = Number(value);
  if (!/^\d{1,16}$/.test(value) || number > max) throw new InvalidInput(`an extended header's ${key} is out of range`);
  return number;
}
