import { readFileSync, statSync } from "node:fs";
import { resolve } from "node:path";
import { CliFailure, exitCodes, usageFailure } from "../failure.ts";
import { type Profile, profilePath, readProfile } from "./profile.ts";

/** The flags of every command that talks to the API. The key itself is no flag: command lines are public. */
export type ConnectionFlags = {
  readonly apiUrl?: string;
  readonly apiKeyFile?: string;
  readonly caFile?: string;
};

/** Where each part of a target came from, for `unkey config`. */
type Source = "flag" | "environment" | "profile" | "none";

/** Where the API is, and how both sides prove themselves. */
export interface Target {
  readonly url: URL;
  readonly apiKey: string;
  readonly caPem?: string;
  readonly caFile?: string;
}

export interface ResolvedTarget extends Target {
  readonly sources: { readonly url: Source; readonly apiKey: Source; readonly ca: Source };
}

export interface TargetInputs {
  readonly flags: ConnectionFlags;
  readonly env: Readonly<Record<string, string | undefined>>;
  readonly home: string;
  readonly cwd: string;
}

const defaultUrl = "https://localhost:8000";

/**
 * Flags win over the environment (UNKEY_API_URL, UNKEY_API_KEY, UNKEY_CA_FILE), the environment over the profile. The
 * profile's key and authority belong to the profile's address: another address never gets them.
 */
export function resolveTarget(inputs: TargetInputs): ResolvedTarget {
  const { env, flags } = inputs;
  const profile = readProfile(inputs.home);
  const [urlText, urlSource] = pick(flags.apiUrl, env["UNKEY_API_URL"], profile?.url);
  const url = parseUrl(urlText ?? defaultUrl, urlSource);
  const fitting = profile !== undefined && new URL(profile.url).origin === url.origin ? profile : undefined;
  const key = apiKeyOf(inputs, fitting);
  const [caFile, caSource] = pick(flags.caFile, env["UNKEY_CA_FILE"], fitting?.caFile);
  if (key === undefined) throw noKey(inputs.home, url, profile);
  return {
    url,
    apiKey: key.value,
    ...(caFile === undefined ? {} : { caFile, caPem: readCa(resolve(inputs.cwd, caFile)) }),
    sources: { url: urlSource, apiKey: key.source, ca: caSource },
  };
}

function pick(flag?: string, env?: string, profile?: string): [string | undefined, Source] {
  if (flag !== undefined) return [flag, "flag"];
  if (env !== undefined && env !== "") return [env, "environment"];
  return profile === undefined ? [undefined, "none"] : [profile, "profile"];
}

function apiKeyOf(inputs: TargetInputs, profile: Profile | undefined): { value: string; source: Source } | undefined {
  const { apiKeyFile } = inputs.flags;
  if (apiKeyFile !== undefined) {
    return { value: checkKey(readSecretFile(resolve(inputs.cwd, apiKeyFile)), "--api-key-file"), source: "flag" };
  }
  const fromEnv = inputs.env["UNKEY_API_KEY"];
  if (fromEnv !== undefined && fromEnv !== "") {
    return { value: checkKey(fromEnv.trim(), "UNKEY_API_KEY"), source: "environment" };
  }
  return profile === undefined ? undefined : { value: profile.apiKey, source: "profile" };
}

function noKey(home: string, url: URL, profile: Profile | undefined): CliFailure {
  if (profile === undefined) {
    return new CliFailure(`there is no profile in ${profilePath(home)} and no UNKEY_API_KEY`, {
      nextStep: "Start a platform on this host with `unkey dev up`, or name one with `unkey login`.",
      exitCode: exitCodes.auth,
    });
  }
  return new CliFailure(`there is no API key for ${url.origin}: the profile's belongs to ${profile.url}`, {
    nextStep: `Set UNKEY_API_KEY, or run \`unkey login --api-url ${url.origin}\`.`,
    exitCode: exitCodes.auth,
  });
}

/** Reads an address; plain http only to this machine, because each request carries the key. */
export function parseUrl(text: string, source: Source): URL {
  const from = source === "environment" ? "UNKEY_API_URL" : source === "flag" ? "--api-url" : "the profile's address";
  const url = URL.canParse(text) ? new URL(text) : undefined;
  if (url === undefined || (url.protocol !== "https:" && url.protocol !== "http:")) {
    throw usageFailure(`${from}: "${text}" is not an address`, "Write it like https://unkey.example.com:8000.");
  }
  if (url.username !== "" || url.password !== "") {
    throw usageFailure(`${from} holds a user name or password`, "Take it out; the API key goes into UNKEY_API_KEY.");
  }
  if (url.protocol === "http:" && !["localhost", "127.0.0.1", "[::1]"].includes(url.hostname)) {
    throw usageFailure(`${from}: plain http would show the API key to the network`, `Use https://${url.host}.`);
  }
  return url;
}

/** A key travels in a header: anything else than visible ASCII is a paste gone wrong. */
export function checkKey(key: string, from: string): string {
  if (/^[!-~]{8,512}$/.test(key)) return key;
  throw new CliFailure(`${from} does not hold an API key`, {
    nextStep: "Set it to the whole key as `unkey keys create` printed it, on one line.",
    exitCode: exitCodes.auth,
  });
}

function readSecretFile(path: string): string {
  if ((statSync(path).mode & 0o077) !== 0) {
    throw new CliFailure(`${path} can be read by others`, {
      nextStep: `Run \`chmod 600 ${path}\`.`,
      exitCode: exitCodes.auth,
    });
  }
  return readFileSync(path, "utf8").trim();
}

export function readCa(path: string): string {
  const pem = readFileSync(path, "utf8");
  if (pem.includes("-----BEGIN CERTIFICATE-----")) return pem;
  throw usageFailure(`${path} holds no certificate in PEM`, "Name the file of the authority's certificate.");
}
