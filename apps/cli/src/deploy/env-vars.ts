import { readFileSync, statSync } from "node:fs";
import { usageFailure } from "../failure.ts";

export interface EnvVar {
  readonly name: string;
  readonly value: string;
}

const maxFileBytes = 1024 * 1024;

/**
 * One `--env`: `NAME=value`, or `NAME` alone to pass on the value that the CLI's own environment has, which keeps a
 * secret out of the command line.
 */
export function parseEnvFlag(input: string, env: Readonly<Record<string, string | undefined>>): EnvVar {
  const split = input.indexOf("=");
  const name = checkName(split === -1 ? input : input.slice(0, split), "--env");
  if (split !== -1) return { name, value: input.slice(split + 1) };
  const value = env[name];
  if (value !== undefined) return { name, value };
  throw usageFailure(`--env ${name}: ${name} is not set here`, `Write --env ${name}=value, or set ${name} first.`);
}

/**
 * The variables of an env file: one `NAME=value` a line, `#` comments, blank lines, an optional `export`. A value may
 * stand in single quotes (as it is) or double quotes (`\n`, `\"` and `\\` mean what they mean in a shell).
 */
export function readEnvFile(path: string): EnvVar[] {
  if (statSync(path).size > maxFileBytes) {
    throw usageFailure(`${path} is larger than 1 MiB`, "Name a file of NAME=value lines.");
  }
  return readFileSync(path, "utf8")
    .split(/\r?\n/)
    .flatMap((line, i) => parseLine(line.trim(), `${path}:${i + 1}`));
}

function parseLine(line: string, where: string): EnvVar[] {
  if (line === "" || line.startsWith("#")) return [];
  const text = line.replace(/^export\s+/, "");
  const split = text.indexOf("=");
  if (split < 1) throw usageFailure(`${where} is not NAME=value`, "Write NAME=value, or # before a comment.");
  return [{ name: checkName(text.slice(0, split).trim(), where), value: unquote(text.slice(split + 1).trim(), where) }];
}

function unquote(text: string, where: string): string {
  const quote = text[0];
  if (quote !== '"' && quote !== "'") return text;
  const inner = new RegExp(quote === "'" ? /^'([^']*)'$/ : /^"((?:[^"\\]|\\.)*)"$/).exec(text)?.[1];
  if (inner === undefined)
    throw usageFailure(`${where}: the quotes do not match`, "Close the quote at the line's end.");
  if (quote === "'") return inner;
  const escapes: Readonly<Record<string, string>> = { n: "\n", r: "\r", t: "\t" };
  return inner.replace(/\\(.)/g, (_all, escaped: string) => escapes[escaped] ?? escaped);
}

function checkName(name: string, where: string): string {
  if (name !== "" && !/[=\0\s]/.test(name)) return name;
  throw usageFailure(`${where}: "${name}" is no name of a variable`, "Write NAME=value.");
}

/** Later ones win over earlier ones of the same name. */
export function mergeEnv(...lists: ReadonlyArray<readonly EnvVar[]>): EnvVar[] {
  return [...new Map(lists.flat().map((variable) => [variable.name, variable])).values()];
}
