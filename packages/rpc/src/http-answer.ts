import type { Http2ServerResponse } from "node:http2";
import { Code, type ConnectError } from "@connectrpc/connect";
import type { UniversalServerResponse } from "@connectrpc/connect/protocol";
import { codeToHttpStatus, errorFromJsonBytes, errorToJsonBytes } from "@connectrpc/connect/protocol-connect";
import { findTrailerError, setTrailerStatus } from "@connectrpc/connect/protocol-grpc";
import { trailerFlag, trailerParse, trailerSerialize } from "@connectrpc/connect/protocol-grpc-web";

/** Answers a call that has no handler in Connect's form of a unary error. */
export function respondWithError(response: Http2ServerResponse, error: ConnectError): void {
  if (response.headersSent || response.stream.destroyed) return;
  const body = errorToJsonBytes(error, undefined);
  response.writeHead(codeToHttpStatus(error.code), { "content-type": "application/json" });
  response.end(body);
}

/**
 * A body that cannot be parsed is refused before any interceptor sees it, and so without our error detail. This finds
 * such an answer, in any of the three protocols, and gives it one.
 */
export async function completeError(
  response: UniversalServerResponse,
  complete: (error: unknown) => ConnectError,
): Promise<UniversalServerResponse> {
  const { status, header, body, trailer } = response;
  const type = header?.get("content-type") ?? "";
  if (type.startsWith("application/grpc")) {
    if (body === undefined || header?.has("content-encoding")) return response;
    const completed = type.startsWith("application/grpc-web") ? completeWeb(body, complete) : body;
    return { ...response, body: trailer === undefined ? completed : completeTrailer(completed, trailer, complete) };
  }
  if (status < 400) return response;
  if (!type.startsWith("application/json") || header?.has("content-encoding")) return response;
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

/** gRPC says how a call ended in the trailer, which is filled when the body has ended. */
async function* completeTrailer(
  body: AsyncIterable<Uint8Array>,
  trailer: Headers,
  complete: (error: unknown) => ConnectError,
): AsyncGenerator<Uint8Array> {
  yield* body;
  addDetail(trailer, complete);
}

/** gRPC-Web sends the trailer as the body's last envelope, which here is a chunk of its own: flags, length, fields. */
async function* completeWeb(
  body: AsyncIterable<Uint8Array>,
  complete: (error: unknown) => ConnectError,
): AsyncGenerator<Uint8Array> {
  for await (const chunk of body) {
    const trailer = chunk[0] === trailerFlag ? trailerParse(chunk.subarray(envelopeHeadBytes)) : undefined;
    if (trailer === undefined || !addDetail(trailer, complete)) {
      yield chunk;
      continue;
    }
    const fields = trailerSerialize(trailer);
    const envelope = Buffer.alloc(envelopeHeadBytes + fields.byteLength);
    envelope[0] = trailerFlag;
    envelope.writeUInt32BE(fields.byteLength, 1);
    envelope.set(fields, envelopeHeadBytes);
    yield envelope;
  }
}

const envelopeHeadBytes = 5;

/** True when the trailer told of an error without a detail, and has one now. */
function addDetail(trailer: Headers, complete: (error: unknown) => ConnectError): boolean {
  const error = findTrailerError(trailer);
  // A call that was withdrawn or too slow needs no detail: nobody reads it, or its code says all.
  if (error === undefined || error.details.length > 0) return false;
  if (error.code === Code.Canceled || error.code === Code.DeadlineExceeded) return false;
  error.isWireError = false; // as in parse()
  setTrailerStatus(trailer, complete(error));
  return true;
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
