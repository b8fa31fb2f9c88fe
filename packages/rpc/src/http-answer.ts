import type { Http2ServerResponse } from "node:http2";
import type { ConnectError } from "@connectrpc/connect";
import type { UniversalServerResponse } from "@connectrpc/connect/protocol";
import { codeToHttpStatus, errorFromJsonBytes, errorToJsonBytes } from "@connectrpc/connect/protocol-connect";

/** Answers a call that has no handler in Connect's form of a unary error. */
export function respondWithError(response: Http2ServerResponse, error: ConnectError): void {
  if (response.headersSent || response.stream.destroyed) return;
  const body = errorToJsonBytes(error, undefined);
  response.writeHead(codeToHttpStatus(error.code), { "content-type": "application/json" });
  response.end(body);
}

/**
 * A unary body that cannot be parsed is refused before any interceptor sees it, and so without our error detail. This
 * finds such an answer and gives it one.
 */
export async function completeError(
  response: UniversalServerResponse,
  complete: (error: unknown) => ConnectError,
): Promise<UniversalServerResponse> {
  const { status, header, body } = response;
  if (status < 400) return response;
  if (!header?.get("content-type")?.startsWith("application/json") || header.has("content-encoding")) return response;
  if (body === undefined) return response;
  const chunks: Uint8Array[] = [];
  for await (const chunk of body) chunks.push(chunk);
  const bytes = Buffer.concat(chunks);
  const error = parse(bytes);
  if (error === undefined || error.details.length > 0) return { ...response, body: once(bytes) };
  const completed = complete(error);
  const answer = errorToJsonBytes(completed, undefined);
  const headers = new Headers(header);
  headers.set("content-length", String(answer.byteLength));
  return { ...response, status: codeToHttpStatus(completed.code), header: headers, body: once(answer) };
}

function parse(bytes: Uint8Array): ConnectError | undefined {
  const unreadable = new Error("not an error in Connect's form");
  try {
    const error = errorFromJsonBytes(bytes, undefined, unreadable as ConnectError);
    // It came from our own protocol layer, not from another service.
    error.isWireError = false;
    return error;
  } catch {
    return undefined;
  }
}

async function* once(bytes: Uint8Array): AsyncGenerator<Uint8Array> {
  yield bytes;
}
