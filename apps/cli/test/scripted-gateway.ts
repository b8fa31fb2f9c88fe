import { writeFileSync } from "node:fs";
import { createSecureServer } from "node:http2";
import type { AddressInfo } from "node:net";
import { join } from "node:path";
import { Code, ConnectError, type ServiceImpl } from "@connectrpc/connect";
import { connectNodeAdapter } from "@connectrpc/connect-node";
import { ErrorInfoSchema } from "@unkey/api/common";
import { GatewayService } from "@unkey/api/gateway";
import { type ErrorReason, errorCatalogue } from "@unkey/base";
import { Authority } from "@unkey/pki";
import { writeProfile } from "../src/connection/profile.ts";

export const scriptedKey = "uk_test_0123456789";

export interface ScriptedGateway extends AsyncDisposable {
  readonly url: string;
  readonly caFile: string;
}

/**
 * A server of the real contract over TLS and HTTP/2 whose answers a test writes, for what the CLI does with answers:
 * the real gateway answers in the integration test. Writes a fitting profile into `home`.
 */
export async function scriptedGateway(
  home: string,
  methods: Partial<ServiceImpl<typeof GatewayService>>,
): Promise<ScriptedGateway> {
  const authority = Authority.open(join(home, "ca"), { commonName: "test" });
  const { certPem, keyPem } = authority.issue({ commonName: "localhost", names: { dnsNames: ["localhost"] } });
  const handler = connectNodeAdapter({
    routes: (router) => router.service(GatewayService, methods),
    interceptors: [
      (next) => (request) => {
        if (request.header.get("authorization") === `Bearer ${scriptedKey}`) return next(request);
        throw refusal("UNAUTHENTICATED", "this key is not known");
      },
    ],
  });
  const server = createSecureServer({ cert: certPem, key: keyPem }, handler);
  const sessions = new Set<{ destroy(): void }>();
  server.on("session", (session) => {
    sessions.add(session);
    session.on("close", () => sessions.delete(session));
  });
  const listening = Promise.withResolvers<void>();
  server.listen(0, "127.0.0.1", listening.resolve);
  await listening.promise;
  const url = `https://localhost:${(server.address() as AddressInfo).port}`;
  const caFile = join(home, "ca.pem");
  writeFileSync(caFile, authority.certPem);
  writeProfile(home, { url, apiKey: scriptedKey, caFile });
  return {
    url,
    caFile,
    [Symbol.asyncDispose]: async () => {
      const closed = Promise.withResolvers<void>();
      server.close(() => closed.resolve());
      for (const session of sessions) session.destroy();
      await closed.promise;
    },
  };
}

const codes: Readonly<Record<string, Code>> = {
  not_found: Code.NotFound,
  unauthenticated: Code.Unauthenticated,
  permission_denied: Code.PermissionDenied,
  unavailable: Code.Unavailable,
  invalid_argument: Code.InvalidArgument,
  already_exists: Code.AlreadyExists,
};

/** A refusal as our services send it: code, message and ErrorInfo. */
export function refusal(reason: ErrorReason, message: string): ConnectError {
  const { code, nextStep } = errorCatalogue[reason];
  return new ConnectError(message, codes[code] ?? Code.Internal, undefined, [
    { desc: ErrorInfoSchema, value: { reason, nextStep } },
  ]);
}
