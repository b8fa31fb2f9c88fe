import type { CliContext } from "./context.ts";
import { Interrupted, usageFailure } from "./failure.ts";

const maxBytes = 16 * 1024;

/** A secret from stdin: asked for without echo from a person, else everything that the pipe holds, trimmed. */
export async function readSecret(context: CliContext, what: string): Promise<string> {
  if (context.input.isTTY && context.err.live) {
    const { password, isCancel } = await import("@clack/prompts");
    const answer = await password({ message: what });
    if (isCancel(answer)) throw new Interrupted("Nothing was changed.");
    return answer.trim();
  }
  let text = "";
  for await (const piece of context.input) {
    text += piece.toString();
    if (text.length > maxBytes)
      throw usageFailure(`${what}: stdin holds more than 16 KiB`, "Pipe in the secret alone.");
  }
  if (text.trim() === "")
    throw usageFailure(`${what} is missing on stdin`, "Pipe it in, for example from a file: < secret");
  return text.trim();
}
