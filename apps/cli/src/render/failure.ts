import type { CliFailure } from "../failure.ts";
import { jsonText, styled, type Terminal } from "./terminal.ts";

interface RenderOptions {
  readonly terminal: Terminal;
  readonly json: boolean;
  readonly env: Readonly<Record<string, string | undefined>>;
}

/** One line what, the evidence, one line next step; with --json one object. Without the last newline. */
export function renderFailure(failure: CliFailure, { terminal, json, env }: RenderOptions): string {
  const { message, nextStep, reason, exitCode, evidence } = failure;
  if (json) return jsonText({ error: { message, nextStep, reason, exitCode, evidence } });
  const lines = [`${styled(terminal, "red", "error:")} ${message}`];
  for (const line of evidence) lines.push(`  ${styled(terminal, "dim", "|")} ${line}`);
  if (nextStep !== "") lines.push(`${styled(terminal, "bold", "next:")}  ${nextStep}`);
  if ((env["UNKEY_DEBUG"] ?? "") !== "") lines.push(...traces(failure.cause));
  return lines.join("\n");
}

/** Stacks down the chain of causes; not their fields, which may hold what was sent. */
function traces(cause: unknown): string[] {
  const found: string[] = [];
  for (let at = cause; at instanceof Error && found.length < 8; at = at.cause) found.push(at.stack ?? at.message);
  return found;
}
