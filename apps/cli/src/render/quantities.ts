/** Numbers of a bill and of a life, for people. Exact values are in `--json`. */

/** `numerator / denominator` with `digits` after the point, rounded half away from zero. */
export function decimal(numerator: bigint, denominator: bigint, digits: number): string {
  const negative = numerator < 0n !== denominator < 0n && numerator !== 0n;
  const magnitude = (n: bigint) => (n < 0n ? -n : n);
  const scaled = magnitude(numerator) * 10n ** BigInt(digits);
  const rounded = (2n * scaled + magnitude(denominator)) / (2n * magnitude(denominator));
  const text = rounded.toString().padStart(digits + 1, "0");
  const whole = text.slice(0, text.length - digits);
  return `${negative && rounded !== 0n ? "-" : ""}${whole}${digits === 0 ? "" : `.${text.slice(-digits)}`}`;
}

/** Microseconds of CPU time as seconds. */
export function vcpuSeconds(cpuTimeUs: bigint): string {
  return decimal(cpuTimeUs, 1_000_000n, 3);
}

/** Byte-milliseconds, written as a decimal number, as GiB-seconds; `?` for what is no number. */
export function gibSeconds(byteMs: string): string {
  const match = /^(\d+)(?:\.(\d+))?$/.exec(byteMs === "" ? "0" : byteMs);
  if (match === null) return "?";
  const [, whole = "0", fraction = ""] = match;
  return decimal(BigInt(whole + fraction), 10n ** BigInt(fraction.length) * 2n ** 30n * 1000n, 3);
}

/** A length of time such as `80 ms`, `4.2 s`, `3 min 20 s` or `2 d 4 h`. */
export function duration(ms: number): string {
  if (ms < 1000) return `${Math.max(0, Math.round(ms))} ms`;
  const seconds = ms / 1000;
  if (seconds < 59.95) return `${seconds.toFixed(1)} s`;
  const minutes = Math.floor(Math.round(seconds) / 60);
  if (minutes < 60) return `${minutes} min ${Math.round(seconds) % 60} s`;
  if (minutes < 24 * 60) return `${Math.floor(minutes / 60)} h ${minutes % 60} min`;
  return `${Math.floor(minutes / 1440)} d ${Math.floor((minutes % 1440) / 60)} h`;
}

/** How long ago `atMs` was; `-` for 0, which stands for never. */
export function age(atMs: bigint, nowMs: number): string {
  return atMs === 0n ? "-" : duration(Math.max(0, nowMs - Number(atMs)));
}

/** An instant in UTC to the second. */
export function instant(atMs: bigint): string {
  return atMs === 0n ? "-" : `${new Date(Number(atMs)).toISOString().slice(0, 19)}Z`;
}

/** `1 VM`, `2 VMs`. */
export function counted(count: number, noun: string): string {
  return `${count} ${noun}${count === 1 ? "" : "s"}`;
}
