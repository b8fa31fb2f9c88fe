export interface RegistryCredentials {
  readonly username: string;
  readonly password: string;
}

/** A token without a stated life has 60 s (distribution's token specification); renewed this much early. */
const defaultTokenMs = 60_000;
const tokenMarginMs = 5_000;

export interface Token {
  readonly authorization: string;
  /** Told apart in errors: a registry that refuses a fresh bearer token denies access, not the password. */
  readonly scheme: "basic" | "bearer";
  readonly expiresAtMs: number;
}

/** Reads a token server's answer; undefined when it holds no usable token. */
export function readToken(body: string, nowMs: number): Token | undefined {
  let json: unknown;
  try {
    json = JSON.parse(body);
  } catch {
    return undefined;
  }
  const fields: Readonly<Record<string, unknown>> = typeof json === "object" && json !== null ? { ...json } : {};
  const token = fields["token"] ?? fields["access_token"];
  if (typeof token !== "string" || !/^[\x21-\x7e]+$/.test(token)) return undefined;
  const seconds = fields["expires_in"];
  const lifeMs = typeof seconds === "number" && seconds > 0 ? seconds * 1000 : defaultTokenMs;
  return {
    authorization: `Bearer ${token}`,
    scheme: "bearer",
    expiresAtMs: nowMs + Math.max(0, lifeMs - tokenMarginMs),
  };
}

/** Credentials as a token that never ends. */
export function basicToken(credentials: RegistryCredentials): Token {
  const { username, password } = credentials;
  const encoded = Buffer.from(`${username}:${password}`, "utf8").toString("base64");
  return { authorization: `Basic ${encoded}`, scheme: "basic", expiresAtMs: Number.POSITIVE_INFINITY };
}

/** The header that carries a token. */
export function authorization(token: Token | undefined): Readonly<Record<string, string>> {
  return token === undefined ? {} : { authorization: token.authorization };
}
