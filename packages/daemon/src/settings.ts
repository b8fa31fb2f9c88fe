import { readFileSync, statSync } from "node:fs";
import { isAbsolute, resolve } from "node:path";
import { parseByteSize } from "@unkey/base";
import { Secret } from "./secret.ts";

/** Every mistake of a configuration at once, so that an operator corrects them in one go. */
export class ConfigError extends Error {
  readonly mistakes: readonly string[];

  constructor(service: string, mistakes: readonly string[]) {
    super(`${service}: ${mistakes.length} mistake(s) in the configuration: ${mistakes.join("; ")}`);
    this.name = "ConfigError";
    this.mistakes = mistakes;
  }
}

/** With `default` (which may be undefined) the setting is optional; without it, its absence is a mistake. */
export interface SettingOptions<D> {
  readonly default?: D;
}

export interface IntOptions<D> extends SettingOptions<D> {
  readonly min: number;
  readonly max: number;
}

/** Where a peer listens: fixed, or read from the address file that the peer writes (see DaemonContext.announce). */
export type Address = { readonly host: string; readonly port: number } | { readonly file: string };

const durationUnitsMs: Readonly<Record<string, number>> = {
  ms: 1,
  s: 1000,
  m: 60_000,
  h: 3_600_000,
  d: 86_400_000,
};

/** `billing-aggregator` → `UNKEY_BILLING_AGGREGATOR_`. */
export function settingPrefix(service: string): string {
  return `UNKEY_${service.toUpperCase().replaceAll("-", "_")}_`;
}

/**
 * Reads the settings `UNKEY_<SERVICE>_*` of one service. A reader that meets a mistake notes it and answers a value of
 * the right type that nobody will see, because `done()` throws. An empty variable counts as absent.
 */
export class Settings {
  readonly #service: string;
  readonly #prefix: string;
  readonly #env: Readonly<Record<string, string | undefined>>;
  readonly #known = new Set<string>();
  readonly #mistakes: string[] = [];

  constructor(service: string, env: Readonly<Record<string, string | undefined>>) {
    this.#service = service;
    this.#prefix = settingPrefix(service);
    this.#env = env;
  }

  string<D = never>(name: string, options: SettingOptions<D> & { readonly pattern?: RegExp } = {}): string | D {
    return this.#read(name, options, "", (text) => {
      if (options.pattern && !options.pattern.test(text)) throw new Error(`must match ${options.pattern.source}`);
      return text;
    });
  }

  int<D = never>(name: string, options: IntOptions<D>): number | D {
    return this.#read(name, options, 0, (text) => {
      if (!/^-?\d+$/.test(text)) throw new Error(`"${text}" is not a whole number`);
      return inRange(Number(text), options, String);
    });
  }

  /** A TCP port; 0 lets the system choose. */
  port<D = never>(name: string, options: SettingOptions<D> = {}): number | D {
    return this.int(name, { ...options, min: 0, max: 65_535 });
  }

  /** `250ms`, `30s`, `5m`, `2h` or `7d`, in milliseconds; `min` and `max` in milliseconds too. */
  durationMs<D = never>(name: string, options: IntOptions<D>): number | D {
    return this.#read(name, options, 0, (text) => {
      const match = /^(\d+)(ms|s|m|h|d)$/.exec(text);
      const unitMs = durationUnitsMs[match?.[2] ?? ""];
      if (unitMs === undefined) throw new Error(`"${text}" is not a duration; write for example 250ms, 30s or 5m`);
      return inRange(Number(match?.[1]) * unitMs, options, (ms) => `${ms}ms`);
    });
  }

  /** `512MiB`, `1GiB` or a number of bytes. */
  bytes<D = never>(name: string, options: IntOptions<D>): number | D {
    return this.#read(name, options, 0, (text) => inRange(parseByteSize(text, name), options, (n) => `${n} bytes`));
  }

  /** An absolute path: a daemon's working directory is nobody's business. */
  path<D = never>(name: string, options: SettingOptions<D> = {}): string | D {
    return this.#read(name, options, "/", absolutePath);
  }

  boolean<D = never>(name: string, options: SettingOptions<D> = {}): boolean | D {
    return this.#read(name, options, false, (text) => {
      if (text !== "true" && text !== "false") throw new Error(`"${text}" is neither true nor false`);
      return text === "true";
    });
  }

  oneOf<const T extends string, const D = never>(
    name: string,
    values: readonly [T, ...T[]],
    options: SettingOptions<D> = {},
  ): T | D {
    return this.#read(name, options, values[0], (text) => {
      const found = values.find((value) => value === text);
      if (found === undefined) throw new Error(`"${text}" is none of ${values.join(", ")}`);
      return found;
    });
  }

  /** Values separated by commas; spaces around them do not count. */
  list<D = never>(name: string, options: SettingOptions<D> & { readonly pattern?: RegExp } = {}): string[] | D {
    return this.#read(name, options, [], (text) => {
      const values = text.split(",").map((value) => value.trim());
      if (values.includes("")) throw new Error("holds an empty value between its commas");
      const odd = values.find((value) => options.pattern && !options.pattern.test(value));
      if (odd !== undefined) throw new Error(`"${odd}" must match ${options.pattern?.source}`);
      return values;
    });
  }

  /** `host:port`, `[v6]:port`, or `file:/path` of an address file that the peer writes. */
  address<D = never>(name: string, options: SettingOptions<D> = {}): Address | D {
    return this.#read(name, options, { host: "", port: 0 }, parseAddress);
  }

  /**
   * The secret in the file that `<NAME>_FILE` names, without surrounding white space: a secret never stands in the
   * environment. Only its owner may be able to read the file.
   */
  secretFile<D = never>(name: string, options: SettingOptions<D> = {}): Secret | D {
    return this.#read(`${name}_FILE`, options, new Secret(""), (text) => {
      const path = absolutePath(text);
      const { mode } = statSync(path);
      if ((mode & 0o077) !== 0) throw new Error(`${path} can be read by others; run chmod 600 on it`);
      const value = readFileSync(path, "utf8").trim();
      if (value === "") throw new Error(`${path} is empty`);
      return new Secret(value);
    });
  }

  /** Notes a contradiction between settings that are each fine by themselves. */
  mistake(text: string): void {
    this.#mistakes.push(text);
  }

  /** Throws ConfigError when any setting was wrong, absent or unknown. Call it once, after the last reader. */
  done(): void {
    const unknown = Object.keys(this.#env)
      .filter((key) => key.startsWith(this.#prefix) && !this.#known.has(key))
      .map((key) => `${key} is not a setting of ${this.#service}; it has ${[...this.#known].toSorted().join(", ")}`);
    const mistakes = [...this.#mistakes, ...unknown];
    if (mistakes.length > 0) throw new ConfigError(this.#service, mistakes);
  }

  #read<T, D>(name: string, options: SettingOptions<D>, placeholder: T, parse: (text: string) => T): T | D {
    const key = this.#prefix + name;
    this.#known.add(key);
    const text = this.#env[key]?.trim() ?? "";
    if (text === "") {
      if ("default" in options) return options.default;
      this.#mistakes.push(`${key} is required`);
      return placeholder;
    }
    try {
      return parse(text);
    } catch (error) {
      this.#mistakes.push(`${key}: ${error instanceof Error ? error.message : String(error)}`);
      return placeholder;
    }
  }
}

function inRange<D>(value: number, { min, max }: IntOptions<D>, show: (value: number) => string): number {
  if (!Number.isSafeInteger(value) || value < min || value > max) {
    throw new Error(`${show(value)} is not between ${show(min)} and ${show(max)}`);
  }
  return value;
}

function absolutePath(text: string): string {
  if (!isAbsolute(text)) throw new Error(`"${text}" is not an absolute path`);
  return resolve(text);
}

/** Reads `host:port`, `[v6]:port` or `file:/absolute/path`. */
export function parseAddress(text: string): Address {
  if (text.startsWith("file:")) return { file: absolutePath(text.slice("file:".length)) };
  const match = /^(?:\[([0-9a-fA-F:.]+)\]|([A-Za-z0-9.-]+)):(\d{1,5})$/.exec(text);
  const port = Number(match?.[3]);
  const host = match?.[1] ?? match?.[2];
  if (host === undefined || !(port >= 1 && port <= 65_535)) {
    throw new Error(`"${text}" is not an address; write host:port, [v6]:port or file:/path`);
  }
  return { host, port };
}
