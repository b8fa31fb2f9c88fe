import { ServiceError } from "@unkey/base";

/** Reads a whole number; throws INVALID_REQUEST naming `field`. */
export function wholeNumber(input: string, field: string, { min, max }: { min: number; max: number }): number {
  const value = Number(input);
  if (/^\d{1,15}$/.test(input) && value >= min && value <= max) return value;
  throw new ServiceError("INVALID_REQUEST", `${field}: "${input}" is not a whole number from ${min} to ${max}`);
}
