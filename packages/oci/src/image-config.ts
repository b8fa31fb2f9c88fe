import { constants } from "node:os";
import { type Digest, parseDigest } from "./digest.ts";
import { InvalidInput } from "./invalid-input.ts";
import { optionalObject, optionalString, optionalStrings, parseJsonObject } from "./json.ts";
import type { Platform } from "./platform.ts";

/** An image's configuration (https://github.com/opencontainers/image-spec/blob/v1.1.0/config.md), defaults filled in. */
export interface ImageConfig {
  readonly platform: Platform;
  /** Entrypoint then Cmd; empty when the image has neither. */
  readonly argv: readonly string[];
  /** `NAME`, value; with a PATH even where the image sets none, as every container engine gives. */
  readonly env: readonly (readonly [name: string, value: string])[];
  /** As written: empty, `name`, `uid`, `name:group`, `uid:gid`. */
  readonly user: string;
  /** Absolute. */
  readonly workingDir: string;
  /** A name such as SIGTERM. */
  readonly stopSignal: string;
  /** TCP ports, lowest first. */
  readonly exposedPorts: readonly number[];
  /** Digests of the uncompressed layers, lowest first. */
  readonly diffIds: readonly Digest[];
}

const defaultPath = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";
const defaultStopSignal = "SIGTERM";
// The bounds of the process that the image describes: what a guest's config drive takes.
const maxItems = 1024;
/** Leaves room for the variables that a platform adds, such as PATH and HOME. */
const maxVariables = 1000;
const maxPorts = 256;
const maxItemBytes = 64 * 1024;

/** Reads an image's config blob. Throws InvalidInput naming the field. */
export function parseImageConfig(bytes: Uint8Array): ImageConfig {
  const json = parseJsonObject(bytes, "the image's config");
  const config = optionalObject(json, "config") ?? {};
  const rootfs = optionalObject(json, "rootfs") ?? {};
  return {
    platform: {
      os: optionalString(json, "os") ?? "",
      architecture: optionalString(json, "architecture") ?? "",
      variant: optionalString(json, "variant") ?? "",
    },
    argv: bounded("Entrypoint and Cmd", [
      ...(optionalStrings(config, "Entrypoint") ?? []),
      ...(optionalStrings(config, "Cmd") ?? []),
    ]),
    env: environment(bounded("Env", optionalStrings(config, "Env") ?? [], maxVariables)),
    user: noNul("User", optionalString(config, "User") ?? ""),
    workingDir: workingDirectory(optionalString(config, "WorkingDir") ?? ""),
    stopSignal: signalName(optionalString(config, "StopSignal") ?? ""),
    exposedPorts: ports(Object.keys(optionalObject(config, "ExposedPorts") ?? {})),
    diffIds: (optionalStrings(rootfs, "diff_ids") ?? []).map(parseDigest),
  };
}

function bounded(field: string, items: readonly string[], max = maxItems): readonly string[] {
  if (items.length > max) throw new InvalidInput(`${field} has over ${max} members`);
  for (const item of items) {
    if (Buffer.byteLength(item) > maxItemBytes)
      throw new InvalidInput(`${field} has a member of over ${maxItemBytes} bytes`);
    noNul(field, item);
  }
  return items;
}

function noNul(field: string, text: string): string {
  if (text.includes("\0")) throw new InvalidInput(`${field} holds a NUL character`);
  return text;
}

function environment(lines: readonly string[]): (readonly [string, string])[] {
  const variables = new Map<string, string>();
  for (const line of lines) {
    const equals = line.indexOf("=");
    if (equals === 0) throw new InvalidInput("Env has a member without a name");
    // A bare name has no value to give: engines drop it.
    if (equals > 0) variables.set(line.slice(0, equals), line.slice(equals + 1));
  }
  if (!variables.has("PATH")) variables.set("PATH", defaultPath);
  return [...variables];
}

function workingDirectory(path: string): string {
  if (path === "") return "/";
  if (!path.startsWith("/")) throw new InvalidInput("WorkingDir is not absolute");
  if (Buffer.byteLength(path) > 4096) throw new InvalidInput("WorkingDir is over 4096 bytes");
  return noNul("WorkingDir", path);
}

/** `SIGQUIT`, `QUIT`, `3` and `RTMIN+3` are all in use. */
function signalName(text: string): string {
  if (text === "") return defaultStopSignal;
  const upper = text.toUpperCase();
  const name = upper.startsWith("SIG") ? upper : `SIG${upper}`;
  if (name in constants.signals) return name;
  if (/^SIGRTMIN(?:\+(?:[0-9]|[12][0-9]|30))?$/.test(name) || /^SIGRTMAX(?:-(?:[0-9]|1[0-4]))?$/.test(name))
    return name;
  const byNumber = Object.entries(constants.signals).find(([, number]) => String(number) === text);
  if (byNumber !== undefined) return byNumber[0];
  throw new InvalidInput(`StopSignal ${JSON.stringify(text.slice(0, 40))} is not a signal`);
}

function ports(keys: readonly string[]): number[] {
  const found = new Set<number>();
  for (const key of keys) {
    const match = /^(\d{1,5})(?:\/([a-z]+))?$/i.exec(key);
    const port = Number(match?.[1]);
    if (match === null || port < 1 || port > 65_535) {
      throw new InvalidInput(`ExposedPorts has ${JSON.stringify(key.slice(0, 40))}, which is not a port`);
    }
    if ((match[2] ?? "tcp").toLowerCase() === "tcp") found.add(port);
  }
  if (found.size > maxPorts) throw new InvalidInput(`ExposedPorts has over ${maxPorts} ports`);
  return [...found].sort((a, b) => a - b);
}
