import { InvalidInput } from "./invalid-input.ts";

/*
 * Readers for fields of untrusted JSON. Each throws InvalidInput naming the field; an absent or null field is undefined.
 */

export type JsonObject = Readonly<Record<string, unknown>>;

export function parseJsonObject(bytes: Uint8Array, what: string): JsonObject {
  return asObject(parseJson(bytes, what), what);
}

export function parseJsonArray(bytes: Uint8Array, what: string): readonly unknown[] {
  const value = parseJson(bytes, what);
  if (Array.isArray(value)) return value;
  throw new InvalidInput(`${what} is not an array`);
}

function parseJson(bytes: Uint8Array, what: string): unknown {
  try {
    return JSON.parse(new TextDecoder("utf-8", { fatal: true }).decode(bytes));
  } catch (error) {
    throw new InvalidInput(`${what} is not JSON`, { cause: error });
  }
}

export function asObject(value: unknown, what: string): JsonObject {
  if (typeof value === "object" && value !== null && !Array.isArray(value)) return value as JsonObject;
  throw new InvalidInput(`${what} is not an object`);
}

export function optionalObject(from: JsonObject, field: string): JsonObject | undefined {
  const value = from[field];
  return value === undefined || value === null ? undefined : asObject(value, field);
}

export function optionalString(from: JsonObject, field: string): string | undefined {
  const value = from[field];
  if (value === undefined || value === null) return undefined;
  if (typeof value === "string") return value;
  throw new InvalidInput(`${field} is not a string`);
}

export function optionalArray(from: JsonObject, field: string): readonly unknown[] | undefined {
  const value = from[field];
  if (value === undefined || value === null) return undefined;
  if (Array.isArray(value)) return value;
  throw new InvalidInput(`${field} is not an array`);
}

export function optionalStrings(from: JsonObject, field: string): readonly string[] | undefined {
  return optionalArray(from, field)?.map((item) => {
    if (typeof item === "string") return item;
    throw new InvalidInput(`${field} holds something else than strings`);
  });
}

export function requiredSize(from: JsonObject, field: string): number {
  const value = from[field];
  if (typeof value === "number" && Number.isSafeInteger(value) && value >= 0) return value;
  throw new InvalidInput(`${field} is not a size`);
}
