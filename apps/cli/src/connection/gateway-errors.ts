import { Code, ConnectError } from "@connectrpc/connect";
import { ErrorInfoSchema } from "@unkey/api/common";
import { type ErrorCode, type ErrorReason, errorCatalogue } from "@unkey/base";
import { CliFailure, exitCodeOf, exitCodes } from "../failure.ts";
import { plain } from "../render/terminal.ts";
import { messageHere, nextStepHere } from "./cli-words.ts";

/** True when the same request may be sent again: nobody took it, or the connection was lost on the way. */
export function isConnectionTrouble(error: unknown): boolean {
  if (!(error instanceof ConnectError)) return false;
  if (error.findDetails(ErrorInfoSchema).length > 0) return error.code === Code.Unavailable;
  // Without a detail it is not our service that speaks: a socket, a proxy or a killed stream, which arrive as these codes.
  return (
    [Code.Unavailable, Code.Aborted, Code.Canceled].includes(error.code) ||
    (error.code === Code.Internal && /http\/2|ERR_HTTP2|session|socket|ECONN|EPIPE/i.test(chainText(error)))
  );
}

/** True when no connection came about: nothing was asked of anybody. */
export function isNobodyThere(error: unknown): boolean {
  const codes = systemCodes(error);
  return ["ECONNREFUSED", "ENOTFOUND", "EAI_AGAIN"].some((code) => codes.includes(code));
}

/** What a call to `origin` failed with, for people; the next step is the service's own where it gave one. */
export function gatewayFailure(error: ConnectError, origin: string, caFile: string | undefined): CliFailure {
  const info = error.findDetails(ErrorInfoSchema)[0];
  if (info !== undefined) {
    return new CliFailure(messageHere(plain(error.rawMessage)), {
      nextStep:
        nextStepHere(info.reason, plain(info.nextStep)) || "Read the message; `unkey dev status` shows what is down.",
      reason: info.reason,
      exitCode: exitCodeOf(codeOf(error.code)),
      cause: error,
    });
  }
  return trustFailure(error, origin, caFile) ?? connectionFailure(error, origin) ?? bareFailure(error);
}

/** OpenSSL's verdicts as Node names them. */
const trustMistakes: Readonly<Record<string, string>> = {
  DEPTH_ZERO_SELF_SIGNED_CERT: "its certificate is self-signed",
  SELF_SIGNED_CERT_IN_CHAIN: "its certificate comes from an authority that is not trusted here",
  UNABLE_TO_GET_ISSUER_CERT_LOCALLY: "its certificate comes from an authority that is not trusted here",
  UNABLE_TO_VERIFY_LEAF_SIGNATURE: "its certificate comes from an authority that is not trusted here",
  CERT_SIGNATURE_FAILURE: "its certificate was signed by another authority of the same name",
  CERT_HAS_EXPIRED: "its certificate has expired",
  CERT_NOT_YET_VALID: "its certificate is not valid yet",
  ERR_TLS_CERT_ALTNAME_INVALID: "its certificate is for another host name",
};

function trustFailure(error: ConnectError, origin: string, caFile: string | undefined): CliFailure | undefined {
  const mistake = systemCodes(error)
    .map((code) => trustMistakes[code])
    .find((text) => text !== undefined);
  if (mistake === undefined) return undefined;
  return new CliFailure(`${origin} cannot be trusted: ${mistake}`, {
    nextStep:
      caFile === undefined
        ? "Name the authority's certificate with --ca-file or UNKEY_CA_FILE."
        : `Check the address, and that ${caFile} is that platform's authority; \`unkey dev up\` writes the right one.`,
    exitCode: exitCodes.auth,
    cause: error,
  });
}

function connectionFailure(error: ConnectError, origin: string): CliFailure | undefined {
  const codes = systemCodes(error);
  const what = codes.includes("ECONNREFUSED")
    ? `nobody answers at ${origin}`
    : codes.includes("ENOTFOUND") || codes.includes("EAI_AGAIN")
      ? `the host of ${origin} is not known`
      : codes.includes("ERR_SSL_WRONG_VERSION_NUMBER") || codes.includes("EPROTO")
        ? `${origin} does not speak TLS`
        : isConnectionTrouble(error)
          ? `the connection to ${origin} was lost`
          : undefined;
  if (what === undefined) return undefined;
  return new CliFailure(what, {
    nextStep: "`unkey dev status` shows what runs on this host, `unkey config` which address is used.",
    exitCode: exitCodes.unavailable,
    cause: error,
  });
}

function bareFailure(error: ConnectError): CliFailure {
  const code = codeOf(error.code);
  const reason = fallbackReasons[code];
  return new CliFailure(plain(error.rawMessage), {
    nextStep: nextStepHere(reason, errorCatalogue[reason].nextStep),
    exitCode: exitCodeOf(code),
    cause: error,
  });
}

const fallbackReasons: Readonly<Record<ErrorCode, ErrorReason>> = {
  canceled: "CANCELED",
  unknown: "INTERNAL",
  invalid_argument: "INVALID_REQUEST",
  deadline_exceeded: "DEADLINE_EXCEEDED",
  not_found: "INVALID_REQUEST",
  already_exists: "INVALID_REQUEST",
  permission_denied: "PERMISSION_DENIED",
  resource_exhausted: "DEPENDENCY_UNAVAILABLE",
  failed_precondition: "INVALID_REQUEST",
  aborted: "SHUTTING_DOWN",
  out_of_range: "INVALID_REQUEST",
  unimplemented: "UNIMPLEMENTED",
  internal: "INTERNAL",
  unavailable: "DEPENDENCY_UNAVAILABLE",
  data_loss: "INTERNAL",
  unauthenticated: "UNAUTHENTICATED",
};

/** `Code.NotFound` → `not_found`, as on the wire. */
function codeOf(code: Code): ErrorCode {
  const name = Code[code] ?? "Unknown";
  return name.replace(/(?<=[a-z])[A-Z]/g, "_$&").toLowerCase() as ErrorCode;
}

function causes(error: unknown): Error[] {
  const chain: Error[] = [];
  for (let at = error; at instanceof Error && chain.length < 16; at = at.cause) chain.push(at);
  return chain;
}

function systemCodes(error: unknown): string[] {
  return causes(error).flatMap((cause) => {
    const { code } = cause as NodeJS.ErrnoException;
    // A host name with several addresses fails with one error for each.
    const inner = cause instanceof AggregateError ? (cause.errors as unknown[]).flatMap(systemCodes) : [];
    return typeof code === "string" ? [code, ...inner] : inner;
  });
}

function chainText(error: unknown): string {
  return causes(error)
    .map((cause) => `${cause.message} ${(cause as NodeJS.ErrnoException).code ?? ""}`)
    .join(" ");
}
