import { createSign, randomUUID, X509Certificate } from "node:crypto";
import { readFileSync } from "node:fs";
import { createServer } from "node:http";
import type { AddressInfo } from "node:net";
import type { TestCertificate } from "./test-certificates.ts";

export interface TokenServer extends AsyncDisposable {
  readonly realm: string;
  readonly service: string;
  readonly issuer: string;
  /** Every token that it gave, oldest first. */
  readonly issued: string[];
}

/** Debian's registry takes a token for so long after its end. */
const leewaySeconds = 60;

/**
 * A token server as a registry with bearer tokens expects it (https://distribution.github.io/distribution/spec/auth/jwt/). Its
 * tokens really end after `lifeSeconds` (at most 60 less than what JWT says), although it says 300.
 */
export async function startTokenServer(
  signer: TestCertificate,
  options: { readonly lifeSeconds: (count: number) => number; readonly login?: { username: string; password: string } },
): Promise<TokenServer> {
  const { lifeSeconds, login } = options;
  const service = "registry.test";
  const issuer = "test tokens";
  const issued: string[] = [];
  const certificate = new X509Certificate(signer.certificatePem).raw.toString("base64");
  const key = readFileSync(signer.keyFile);
  const part = (value: object): string => Buffer.from(JSON.stringify(value)).toString("base64url");
  const expected = login && `Basic ${Buffer.from(`${login.username}:${login.password}`).toString("base64")}`;
  const server = createServer((request, response) => {
    const url = new URL(request.url ?? "", "http://localhost");
    if (request.headers.authorization !== expected) return void response.writeHead(401).end();
    const [type, name, actions = ""] = (url.searchParams.get("scope") ?? "").split(":");
    const nowSeconds = Math.floor(Date.now() / 1000);
    const signed = [
      part({ typ: "JWT", alg: "ES256", x5c: [certificate] }),
      part({
        iss: issuer,
        sub: login?.username ?? "",
        aud: service,
        exp: nowSeconds + lifeSeconds(issued.length) - leewaySeconds,
        nbf: nowSeconds - 3600,
        iat: nowSeconds - 3600,
        jti: randomUUID(),
        access: [{ type, name, actions: actions.split(",") }],
      }),
    ].join(".");
    const signature = createSign("sha256").update(signed).sign({ key, dsaEncoding: "ieee-p1363" }, "base64url");
    issued.push(`${signed}.${signature}`);
    return void response.end(JSON.stringify({ token: issued.at(-1), expires_in: 300 }));
  });
  await new Promise<void>((resolve) => server.listen(0, "127.0.0.1", resolve));
  return {
    realm: `http://127.0.0.1:${(server.address() as AddressInfo).port}/token`,
    service,
    issuer,
    issued,
    async [Symbol.asyncDispose]() {
      server.closeAllConnections();
      await new Promise((resolve) => server.close(resolve));
    },
  };
}
