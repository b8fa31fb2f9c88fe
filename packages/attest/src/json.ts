import { InvalidAttestation } from "./invalid-attestation.ts";

export type JsonObject = Readonly<Record<string, unknown>>;

/** Reads JSON that somebody else wrote. `what` begins the message of the InvalidAttestation that is thrown. */
export function parseJsonObject(bytes: Uint8Array, maxBytes: number, what: string): JsonObject {
  if (bytes.length > maxBytes) {
    throw new InvalidAttestation(`${what} has ${bytes.length} bytes; at most ${maxBytes} are read`);
  }
  let value: unknown;
  try {
    value = JSON.parse(new TextDecoder("utf-8", { fatal: true }).decode(bytes));
  } catch {
    throw new InvalidAttestation(`${what} is not JSON`);
  }
  return asObject(value, what);
}

export function asObject(value: unknown, what: string): JsonObject {
  if (typeof value === "object" && value !== null && !Array.isArray(value)) return value as JsonObject;
  throw new InvalidAttestation(`${what} is not an object`);
}

export function asArray(value: unknown, maxItems: number, what: string): readonly unknown[] {
  if (!Array.isArray(value)) throw new InvalidAttestation(`${what} is not an array`);
  if (value.length > maxItems) {
    throw new InvalidAttestation(`${what} has ${value.length} items; at most ${maxItems} are read`);
  }
  return value;
}

export function asString(value: unknown, maxLength: number, what: string): string {
  if (typeof value === "string" && value.length <= maxLength) return value;
  throw new InvalidAttestation(`${what} is not a string of at most ${maxLength} characters`);
}
