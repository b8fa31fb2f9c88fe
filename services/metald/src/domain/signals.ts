/** Names of Linux's signals by number, from 1 (signal(7), x86 and ARM): the guest's, whatever runs the host. */
const names =
  "HUP INT QUIT ILL TRAP ABRT BUS FPE KILL USR1 SEGV USR2 PIPE ALRM TERM STKFLT CHLD CONT STOP TSTP TTIN TTOU URG XCPU XFSZ VTALRM PROF WINCH IO PWR SYS".split(
    " ",
  );
const aliases: Readonly<Record<string, string>> = { IOT: "ABRT", POLL: "IO", CLD: "CHLD" };
const firstRealTime = 34;
const last = 64;

/** `SIGTERM` for 15, `SIGRTMIN+3` for 37. */
export function signalName(number: number): string {
  const name = names[number - 1];
  if (name !== undefined) return `SIG${name}`;
  return number >= firstRealTime ? `SIGRTMIN+${number - firstRealTime}` : `SIG${number}`;
}

/** The number of `SIGTERM`, `TERM`, `SIGRTMIN+3` or `15`, as images write them; undefined for anything else. */
export function signalNumber(text: string): number | undefined {
  const [, plain, realTime, digits] = /^(?:(?:SIG)?(?:([A-Z]+\d?)|RTMIN(?:\+(\d{1,2}))?)|(\d{1,2}))$/.exec(text) ?? [];
  let number: number | undefined;
  if (digits !== undefined) number = Number(digits);
  else if (plain === "RTMIN" || realTime !== undefined) number = firstRealTime + Number(realTime ?? 0);
  else if (plain !== undefined) number = names.indexOf(aliases[plain] ?? plain) + 1;
  return number !== undefined && number >= 1 && number <= last ? number : undefined;
}
