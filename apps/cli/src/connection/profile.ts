import { readFileSync, statSync } from "node:fs";
import { isAbsolute, join } from "node:path";
import { isErrno } from "@unkey/base";
import { CliFailure, exitCodes } from "../failure.ts";
import { writePrivateFile } from "../private-file.ts";

/** Where the platform's API is and how to prove oneself to it: `cli.json`, readable by its owner only. */
export interface Profile {
  /** Base address, such as `https://localhost:8000`. */
  readonly url: string;
  readonly apiKey: string;
  /** Absolute path of the authority's certificate in PEM; the system's authorities without it. */
  readonly caFile?: string;
}

export function profilePath(home: string): string {
  return join(home, "cli.json");
}

/** The profile in `home`, or undefined when there is none. Refuses one that others can read. */
export function readProfile(home: string): Profile | undefined {
  const path = profilePath(home);
  let text: string;
  try {
    if ((statSync(path).mode & 0o077) !== 0) {
      throw new CliFailure(`${path} holds an API key and can be read by others`, {
        nextStep: `Run \`chmod 600 ${path}\`; if others may have read it, revoke the key with \`unkey keys revoke\`.`,
        exitCode: exitCodes.auth,
      });
    }
    text = readFileSync(path, "utf8");
  } catch (error) {
    if (isErrno(error, "ENOENT")) return undefined;
    throw error;
  }
  const profile = parseProfile(text);
  if (profile !== undefined) return profile;
  throw new CliFailure(`${path} is not a profile`, {
    nextStep: "Delete it, then run `unkey dev up` or `unkey login` to have it written again.",
  });
}

export function writeProfile(home: string, profile: Profile): void {
  writePrivateFile(profilePath(home), `${JSON.stringify(profile, undefined, 2)}\n`, { durable: true });
}

function parseProfile(text: string): Profile | undefined {
  let value: unknown;
  try {
    value = JSON.parse(text);
  } catch {
    return undefined;
  }
  if (typeof value !== "object" || value === null) return undefined;
  const { url, apiKey, caFile } = value as Record<string, unknown>;
  if (typeof url !== "string" || typeof apiKey !== "string" || !URL.canParse(url)) return undefined;
  if (caFile === undefined) return { url, apiKey };
  return typeof caFile === "string" && isAbsolute(caFile) ? { url, apiKey, caFile } : undefined;
}
