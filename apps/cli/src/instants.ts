import { ServiceError } from "@unkey/base";

const pattern = /^\d{4}-\d{2}-\d{2}(?:T\d{2}:\d{2}(?::\d{2}(?:\.\d{1,3})?)?(?:Z|[+-]\d{2}:\d{2})?)?$/;

/** Reads a date or an instant in ISO 8601, in UTC unless it names an offset, as epoch milliseconds. */
export function parseInstant(input: string, field: string): bigint {
  const zoned = /(?:Z|[+-]\d{2}:\d{2})$/.test(input) || !input.includes("T") ? input : `${input}Z`;
  const atMs = pattern.test(input) ? Date.parse(zoned) : Number.NaN;
  if (!Number.isNaN(atMs)) return BigInt(atMs);
  throw new ServiceError(
    "INVALID_REQUEST",
    `${field}: "${input}" is not an instant; write for example 2026-11-01 or 2026-11-01T12:00Z`,
  );
}
