import { ServiceError } from "./errors.ts";

export const kib = 1024;
export const mib = 1024 * kib;
export const gib = 1024 * mib;

const byteSuffixes: Readonly<Record<string, number>> = { "": 1, b: 1, k: kib, kib, m: mib, mib, g: gib, gib };

/** Reads a size such as `512MiB`, `1g` or `1048576`, in bytes. Suffixes are binary. Throws INVALID_REQUEST naming `field`. */
export function parseByteSize(text: string, field: string): number {
  const match = /^(\d+(?:\.\d+)?)\s*([a-z]*)$/i.exec(text.trim());
  const factor = byteSuffixes[match?.[2]?.toLowerCase() ?? "none"];
  const bytes = Number(match?.[1]) * (factor ?? Number.NaN);
  if (!Number.isSafeInteger(bytes)) {
    throw new ServiceError("INVALID_REQUEST", `${field}: "${text}" is not a size; write for example 512MiB or 1GiB`);
  }
  return bytes;
}

/** `bytes` for people, with a binary suffix and at most one decimal. */
export function formatBytes(bytes: number | bigint): string {
  let value = Number(bytes);
  for (const suffix of ["B", "KiB", "MiB", "GiB"]) {
    if (Math.abs(value) < 1024) return `${Number(value.toFixed(1))} ${suffix}`;
    value /= 1024;
  }
  return `${Number(value.toFixed(1))} TiB`;
}
