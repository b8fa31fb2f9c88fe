import type { ExitStatus } from "@unkey/api/metal";
import { plain } from "./terminal.ts";

/** How a program ended, in a few words; empty when it has not. */
export function exitText(exit: ExitStatus | undefined): string {
  const outcome = exit?.outcome;
  switch (outcome?.case) {
    case "code":
      return `exit code ${outcome.value}`;
    case "signal":
      return `ended by ${plain(outcome.value)}`;
    case "unknownBecause":
      return `exit status unknown: ${plain(outcome.value)}`;
    case undefined:
      return "";
  }
}
