/** True when the operating system refused with one of the codes, "ENOENT" for one. */
export function isErrno(error: unknown, ...codes: readonly [string, ...string[]]): error is NodeJS.ErrnoException {
  return error instanceof Error && "code" in error && codes.some((code) => code === error.code);
}
