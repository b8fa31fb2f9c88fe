import type { CliContext } from "./context.ts";
import { CliFailure, Interrupted, usageFailure } from "./failure.ts";

/** Asks before something that cannot be undone; without a person to ask, `--yes` has to say so. */
export async function confirmOrRefuse(context: CliContext, question: string): Promise<void> {
  if (!context.input.isTTY || !context.err.live) {
    throw usageFailure("nobody is there to confirm this", "Add --yes to do it without asking.");
  }
  const { confirm, isCancel } = await import("@clack/prompts");
  const answer = await confirm({ message: question, initialValue: false });
  if (isCancel(answer)) throw new Interrupted("Nothing was changed.");
  if (!answer) throw new CliFailure("not confirmed", { nextStep: "Nothing was changed." });
}
