import { isAbsolute } from "node:path";
import { ServiceError, type TenantId } from "@unkey/base";
import type { Logger } from "@unkey/daemon";
import { credentialsFor, type ImageReference, parseImageReference, type RegistryCredentials } from "@unkey/oci";
import type { CredentialStore } from "../ports.ts";
import { OperatorFile } from "./operator-file.ts";

type Logins = ReadonlyMap<string, ReadonlyMap<string, RegistryCredentials>>;

/**
 * Logins that the operator keeps for tenants, in a file that only builderd's own user can read:
 *
 *     { "<tenant>": { "registry.example/team": { "username": "robot", "passwordFile": "/etc/unkey/robot" } } }
 *
 * with `password` in place of `passwordFile` (absolute; as private) where it shall stand there itself. A change is seen at the
 * next build. A file that has become wrong, or readable by others, gives no login any more: builds that would have used one
 * fail and say so, rather than ask the registry as nobody.
 */
export class CredentialFile implements CredentialStore {
  readonly #file: OperatorFile<Logins> | undefined;

  /** Without a path there are no logins. Throws why the file cannot be used. */
  constructor(path: string | undefined, log: Logger) {
    if (path !== undefined) {
      this.#file = new OperatorFile({
        path,
        name: "the file of registry logins",
        parse: parseLogins,
        isPrivate: true,
        log,
      });
    }
  }

  async find(tenantId: TenantId, reference: ImageReference): Promise<RegistryCredentials | undefined> {
    const found = credentialsFor(reference, this.#file?.value.get(tenantId) ?? new Map());
    const problem = this.#file?.problem;
    if (found === undefined || problem === undefined) return found;
    throw new ServiceError(
      "REGISTRY_CREDENTIALS_UNUSABLE",
      `the platform's login for ${reference.registry} cannot be used now`,
      { cause: problem },
    );
  }

  /** Throws while the file cannot be used. */
  check(): void {
    this.#file?.check();
  }
}

type ReadFile = (path: string) => string;

function parseLogins(text: string, read: ReadFile): Logins {
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
          parseLogin(objectOf(login, prefix), prefix, read),
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

function parseLogin(login: Readonly<Record<string, unknown>>, prefix: string, read: ReadFile): RegistryCredentials {
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
  const secret = passwordFile === undefined ? password : read(passwordFile).trim();
  if (typeof secret !== "string" || secret === "") throw new Error(`${prefix}: the password is empty`);
  return { username, password: secret };
}

function objectOf(value: unknown, what: string): Readonly<Record<string, unknown>> {
  if (typeof value === "object" && value !== null && !Array.isArray(value)) return { ...value };
  throw new Error(`${what} is not an object`);
}
