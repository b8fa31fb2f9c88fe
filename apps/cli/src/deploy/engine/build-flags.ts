import { accessSync, constants, statSync } from "node:fs";
import { resolve } from "node:path";
import type { Env } from "../../context.ts";
import { usageFailure } from "../../failure.ts";

export interface BuildArg {
  readonly name: string;
  readonly value: string;
}

export interface BuildSecret {
  readonly id: string;
  readonly path: string;
}

/** One `--build-arg`: `NAME=value`, or `NAME` alone to pass on the value that our own environment has. */
export function parseBuildArg(input: string, env: Env): BuildArg {
  const split = input.indexOf("=");
  const name = split === -1 ? input : input.slice(0, split);
  if (!/^[A-Za-z_][A-Za-z0-9_]*$/.test(name)) {
    throw usageFailure(`--build-arg: "${name}" is no name of a build argument`, "Write --build-arg NAME=value.");
  }
  const value = split === -1 ? env[name] : input.slice(split + 1);
  if (value !== undefined) return { name, value };
  throw usageFailure(
    `--build-arg ${name}: ${name} is not set here`,
    `Write --build-arg ${name}=value, or set ${name} first.`,
  );
}

const secretAdvice = "Write --secret id=name,src=path; the Dockerfile reads it with RUN --mount=type=secret,id=name.";

/** One `--secret id=…,src=…`. Its file stays where it is: neither its content nor a copy goes anywhere but to the engine. */
export function parseBuildSecret(input: string, cwd: string): BuildSecret {
  const fields = new Map(
    input.split(",").map((field): [string, string] => {
      const split = field.indexOf("=");
      return [field.slice(0, Math.max(split, 0)), field.slice(split + 1)];
    }),
  );
  const { id = "", src = fields.get("source") ?? "" } = Object.fromEntries(fields);
  const known = [...fields.keys()].every((key) => ["id", "src", "source"].includes(key));
  if (!known || src === "" || !/^[A-Za-z0-9_][A-Za-z0-9_.-]*$/.test(id)) {
    // The input is not repeated: somebody may have put the secret itself there.
    throw usageFailure("--secret is not of the form id=name,src=path", secretAdvice);
  }
  const path = resolve(cwd, src);
  if (/[,"\n]/.test(path))
    throw usageFailure(`--secret: ${src} has a comma or a quote in its path`, "Rename the file.");
  if (statSync(path, { throwIfNoEntry: false })?.isFile() !== true) {
    throw usageFailure(`--secret: ${src} is not a file`, secretAdvice);
  }
  accessSync(path, constants.R_OK);
  return { id, path };
}
