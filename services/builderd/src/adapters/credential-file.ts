import { closeSync, fstatSync, openSync, readFileSync } from "node:fs";
import { isAbsolute } from "node:path";
import { formatBytes, mib, ServiceError, type TenantId } from "@unkey/base";
import type { Logger } from "@unkey/daemon";
import { credentialsFor, type ImageReference, parseImageReference, type RegistryCredentials } from "@unkey/oci";
import type { CredentialStore } from "../ports.ts";

const maxFileBytes = mib;

type Logins = ReadonlyMap<string, ReadonlyMap<string, RegistryCredentials>>;

/**
 * Logins that the operator keeps for tenants, in a file that only builderd's own user can read:
 *
 *     { "<tenant>": { "registry.example/team": { "username": "robot", "passwordFile": "/etc/unkey/robot" } } }
 *
 * with `password` in place of `passwordFile` (absolute; as private) where it shall stand there itself. It is read again whenever it
 * has changed. A file that has become wrong, or readable by others, gives no login any more: builds that would have used one
 * fail and say so, rather than ask the registry as nobody.
 */
export class CredentialFile implements CredentialStore {
  readonly #path: string | undefined;
  readonly #log: Logger;
  #version = "";
  #logins: Logins = new Map();
  #problem: Error | undefined;

  /** Without a path there are no logins. Throws why the file cannot be used. */
  constructor(path: string | undefined, log: Logger) {
    this.#path = path;
    this.#log = log;
    this.#refresh();
    if (this.#problem !== undefined) throw this.#problem;
  }

  async find(tenantId: TenantId, reference: ImageReference): Promise<RegistryCredentials | undefined> {
    this.#refresh();
    const found = credentialsFor(reference, this.#logins.get(tenantId) ?? new Map());
    if (found === undefined || this.#problem === undefined) return found;
    throw new ServiceError(
      "REGISTRY_CREDENTIALS_UNUSABLE",
      `the platform's login for ${reference.registry} cannot be used now`,
      { cause: this.#problem },
    );
  }

  /** Throws while the file cannot be used. */
  check(): void {
    this.#refresh();
    if (this.#problem !== undefined) throw this.#problem;
  }

  #refresh(): void {
    const path = this.#path;
    if (path === undefined) return;
    try {
      const files = new PrivateFiles();
      const document = files.read(path);
      // Password files are read each time: they may change by themselves.
      const logins = parseLogins(document, files);
      if (files.version === this.#version && this.#problem === undefined) return;
      this.#logins = logins;
      this.#problem = undefined;
      this.#version = files.version;
      this.#log.info("registry logins read", { path, tenants: logins.size });
    } catch (cause) {
      const said = cause instanceof Error ? cause.message : String(cause);
      const problem = new Error(`the registry logins in ${path}: ${said}`, { cause });
      if (problem.message !== this.#problem?.message)
        this.#log.error("registry logins refused", { path, error: problem });
      this.#problem = problem;
    }
  }
}

/** Reads files of secrets and remembers which they were. */
class PrivateFiles {
  version = "";

  read(path: string): string {
    const file = openSync(path, "r");
    try {
      const { mode, uid, ino, size, mtimeNs, ctimeNs } = fstatSync(file, { bigint: true });
      if ((Number(mode) & 0o170000) !== 0o100000) throw new Error(`${path} is not a regular file`);
      if ((Number(mode) & 0o077) !== 0) throw new Error(`${path} can be read by others; run chmod 600 on it`);
      const own = BigInt(process.geteuid?.() ?? 0);
      if (uid !== own && uid !== 0n) throw new Error(`${path} belongs to another user`);
      if (size > maxFileBytes) throw new Error(`${path} is over ${formatBytes(maxFileBytes)}`);
      this.version += `${path} ${ino} ${size} ${mtimeNs} ${ctimeNs}\n`;
      return readFileSync(file, "utf8");
    } finally {
      closeSync(file);
    }
  }
}

function parseLogins(text: string, files: PrivateFiles): Logins {
  let json: unknown;
  try {
    json = JSON.parse(text);
  } catch {
    throw new Error("it is not JSON"); // the parser's own words would quote the file
  }
  const tenants = Object.entries(objectOf(json, "the file"));
  return new Map(
    tenants.map(([tenantId, prefixes]) => [
      tenantId,
      new Map(
        Object.entries(objectOf(prefixes, tenantId)).map(([prefix, login]) => [
          checkPrefix(prefix),
          parseLogin(objectOf(login, prefix), prefix, files),
        ]),
      ),
    ]),
  );
}

function checkPrefix(prefix: string): string {
  try {
    const { registry, repository } = parseImageReference(`${prefix}/x/x`);
    if (`${registry}/${repository}` === `${prefix}/x/x`) return prefix;
  } catch {
    // said below, in words about a prefix
  }
  throw new Error(
    `${JSON.stringify(prefix)} is no registry (registry.example:5000) and no start of an image's name in one`,
  );
}

function parseLogin(
  login: Readonly<Record<string, unknown>>,
  prefix: string,
  files: PrivateFiles,
): RegistryCredentials {
  const { username, password, passwordFile, ...others } = login;
  const [other] = Object.keys(others);
  if (other !== undefined) throw new Error(`${prefix}: a login has no ${JSON.stringify(other)}`);
  if (typeof username !== "string" || username === "" || username.includes(":")) {
    throw new Error(`${prefix}: username is missing, or holds a colon`);
  }
  if ((password === undefined) === (passwordFile === undefined)) {
    throw new Error(`${prefix}: either password or passwordFile is needed`);
  }
  if (passwordFile !== undefined && (typeof passwordFile !== "string" || !isAbsolute(passwordFile))) {
    throw new Error(`${prefix}: passwordFile is not an absolute path`);
  }
  const secret = passwordFile === undefined ? password : files.read(passwordFile).trim();
  if (typeof secret !== "string" || secret === "") throw new Error(`${prefix}: the password is empty`);
  return { username, password: secret };
}

function objectOf(value: unknown, what: string): Readonly<Record<string, unknown>> {
  if (typeof value === "object" && value !== null && !Array.isArray(value)) return { ...value };
  throw new Error(`${what} is not an object`);
}
