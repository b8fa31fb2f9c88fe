import type { Http2ServerRequest, Http2ServerResponse } from "node:http2";
import type { ByteCall } from "./asset-bytes.ts";
import type { RequestBody } from "./request-body.ts";

/** One admitted request to the registry. */
export interface Exchange extends ByteCall {
  readonly request: Http2ServerRequest;
  readonly response: Http2ServerResponse;
  readonly query: URLSearchParams;
  readonly body: RequestBody;
  /** For what goes on when the client leaves: its bytes are kept, so that it may continue. */
  readonly lasting: ByteCall;
  /** What `answer` said: it is sent once the audit log has the request. */
  readonly outbox: { send?: () => void };
}

export type AnswerHeaders = Readonly<Record<string, string | number>>;

/** Answers without a body; a HEAD request keeps the length that its GET would have. */
export function answer({ response, outbox }: Exchange, status: number, headers: AnswerHeaders = {}): void {
  outbox.send = () => {
    if (gone(response)) return;
    response.writeHead(status, status === 204 ? headers : { "content-length": 0, ...headers });
    response.end();
  };
}

export function answerJson(
  { request, response }: Exchange,
  type: string,
  value: unknown,
  headers: AnswerHeaders = {},
): void {
  if (gone(response)) return;
  const text = JSON.stringify(value);
  response.writeHead(200, { "content-type": type, "content-length": Buffer.byteLength(text), ...headers });
  if (request.method === "HEAD") response.end();
  else response.end(text);
}

/**
 * Sends exactly `length` bytes at the client's pace. A source that ends early or fails breaks the answer off, so that the
 * client does not take it for whole.
 */
export async function answerBytes(
  { response }: Exchange,
  status: number,
  headers: AnswerHeaders,
  source: AsyncIterable<Uint8Array>,
  length: number,
): Promise<void> {
  if (gone(response)) return;
  let left = length;
  let began = false;
  const begin = () => {
    if (!began) response.writeHead(status, { ...headers, "content-length": length });
    began = true;
  };
  if (left > 0) {
    for await (const chunk of source) {
      begin(); // not before the source has proved that it can be read
      const part = chunk.byteLength > left ? chunk.subarray(0, left) : chunk;
      left -= part.byteLength;
      if (!response.write(part)) await drained(response);
      if (gone(response)) return;
      if (left === 0) break;
    }
  }
  if (left > 0) throw new Error(`the bytes ended ${left} before their length`);
  begin();
  response.end();
}

function gone(response: Http2ServerResponse): boolean {
  return response.destroyed || response.writableEnded;
}

async function drained(response: Http2ServerResponse): Promise<void> {
  if (response.destroyed) return;
  const { promise, resolve } = Promise.withResolvers<void>();
  const done = () => resolve();
  response.once("drain", done);
  response.once("close", done);
  await promise;
  response.off("drain", done);
  response.off("close", done);
}
