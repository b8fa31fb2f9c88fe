import type { Http2ServerRequest, Http2ServerResponse } from "node:http2";
import { create, createRegistry, type Message, toJsonString } from "@bufbuild/protobuf";
import { ConnectError, type HandlerContext } from "@connectrpc/connect";
import { ErrorInfoSchema } from "@unkey/api/common";
import { type ErrorReason, errorCatalogue, isServiceError, newId, ServiceError } from "@unkey/base";
import type { Logger } from "@unkey/daemon";
import { requestIdHeader, toServiceError } from "@unkey/rpc";
import { problemOf } from "../domain/problem.ts";
import type { ApiRunner } from "./api-runner.ts";
import { messageOf, parseJson } from "./rest-message.ts";
import type { RestRoute, RestRouter } from "./rest-router.ts";

/** Node gives HTTP/1.1 requests on an HTTP/2 server the same type. */
type AnyRequest = Http2ServerRequest;
type AnyResponse = Http2ServerResponse;

export interface RestHandlerOptions {
  readonly runner: ApiRunner;
  readonly router: RestRouter;
  readonly openApi: Uint8Array;
  readonly log: Logger;
  readonly maxBodyBytes: number;
}

/** How long an answer's status waits for a stream's first message, so that an early error still gets its own. */
const firstMessageMs = 1000;
const uploadTypes = ["application/octet-stream", "application/x-tar"];
const chunkBytes = 256 * 1024;

/** The public API over REST: JSON in and out, streams as one JSON object a line, errors as RFC 9457 problems. */
export class RestHandler {
  readonly #options: RestHandlerOptions;

  constructor(options: RestHandlerOptions) {
    this.#options = options;
  }

  async serve(request: AnyRequest, response: AnyResponse): Promise<void> {
    const headers = webHeaders(request);
    const aborted = new AbortController();
    response.once("close", () => aborted.abort());
    let requestId = newId("req") as string;
    try {
      const url = targetOf(request.url);
      if (url.pathname === "/openapi.json") {
        this.#openApi(request, response);
        return;
      }
      const route = this.#route(request, response, url.pathname);
      const verb = request.method ?? "GET";
      const context = this.#options.runner.context(route.method, {
        verb,
        url: url.href,
        headers,
        signal: aborted.signal,
      });
      try {
        await this.#call(route, context, url, request, response);
      } catch (error) {
        requestId = context.responseHeader.get(requestIdHeader) ?? requestId;
        copyHeaders(context.responseHeader, response);
        throw error;
      } finally {
        context.abort();
      }
    } catch (error) {
      this.#fail(error, requestId, request, response);
    }
  }

  #route(request: AnyRequest, response: AnyResponse, path: string): RestRoute {
    const match = this.#options.router.match(request.method ?? "GET", path);
    if (match.kind === "found") return match.route;
    if (match.kind === "wrong-verb") {
      const allow = match.allowed.join(", ");
      response.setHeader("allow", allow);
      throw new ServiceError("METHOD_NOT_ALLOWED", `this path takes ${allow}, not ${request.method}`);
    }
    const near = match.near.length > 0 ? `; near to it are ${match.near.join(", ")}` : "";
    throw new ServiceError("ROUTE_UNKNOWN", `there is no path ${JSON.stringify(path.slice(0, 200))}${near}`);
  }

  async #call(
    route: RestRoute,
    context: HandlerContext,
    url: URL,
    request: AnyRequest,
    response: AnyResponse,
  ): Promise<void> {
    const { runner } = this.#options;
    const { method, rest, variables } = route;
    await runner.gate(context);
    const status = rest.successStatus || 200;
    if (rest.rawBody) {
      mustBeType(request, uploadTypes);
      // What stands in the path and the query is the first message.
      const head = messageOf(method.input, { path: variables, query: url.searchParams, body: undefined });
      async function* messages() {
        yield head;
        yield* chunks(request, (chunk) => create(method.input, { chunk }));
      }
      const answer = await runner.clientStream(context, messages());
      this.#answer(context, response, status, answer);
      return;
    }
    const hasBody = rest.verb !== "GET" && rest.verb !== "DELETE";
    const body = hasBody ? parseJson(await this.#readBody(request)) : undefined;
    if (!hasBody) mustBeEmpty(request);
    const message = messageOf(method.input, { path: variables, query: url.searchParams, body });
    if (rest.rawAnswer !== "") {
      await this.#content(context, response, rest.rawAnswer, await runner.serverStream(context, message));
    } else if (method.methodKind === "server_streaming") {
      await this.#stream(context, response, await runner.serverStream(context, message));
    } else {
      this.#answer(context, response, status, await runner.unary(context, message));
    }
  }

  #answer(context: HandlerContext, response: AnyResponse, status: number, message: Message): void {
    copyHeaders(context.responseHeader, response);
    const body = json(context, message);
    response.writeHead(status, { "content-type": "application/json", "content-length": Buffer.byteLength(body) });
    response.end(body);
  }

  async #stream(context: HandlerContext, response: AnyResponse, messages: AsyncIterable<Message>): Promise<void> {
    const begin = () => {
      if (response.headersSent) return;
      copyHeaders(context.responseHeader, response);
      response.writeHead(200, { "content-type": "application/x-ndjson", "cache-control": "no-store" });
      (response as AnyResponse & { flushHeaders(): void }).flushHeaders();
    };
    const timer = setTimeout(begin, firstMessageMs);
    try {
      for await (const message of messages) {
        begin();
        await write(response, `${json(context, message)}\n`);
      }
      begin();
      response.end();
    } finally {
      clearTimeout(timer);
    }
  }

  /** The first chunk decides the status; what fails behind it breaks the answer off, so that a part is not taken for the whole. */
  async #content(
    context: HandlerContext,
    response: AnyResponse,
    type: string,
    messages: AsyncIterable<Message>,
  ): Promise<void> {
    try {
      for await (const message of messages) {
        if (!response.headersSent) {
          copyHeaders(context.responseHeader, response);
          response.writeHead(200, { "content-type": type, "cache-control": "no-store" });
        }
        await write(response, chunkOf(message));
      }
    } catch (error) {
      if (!response.headersSent) throw error;
      response.destroy(error instanceof Error ? error : new Error(String(error)));
      return;
    }
    response.end();
  }

  async #readBody(request: AnyRequest): Promise<Uint8Array> {
    const { maxBodyBytes } = this.#options;
    const tooLarge = () => new ServiceError("BODY_TOO_LARGE", `the body is larger than ${maxBodyBytes} bytes`);
    if (Number(request.headers["content-length"] ?? 0) > maxBodyBytes) throw tooLarge();
    const parts: Uint8Array[] = [];
    let size = 0;
    for await (const part of request as AsyncIterable<Uint8Array>) {
      size += part.byteLength;
      if (size > maxBodyBytes) throw tooLarge();
      parts.push(part);
    }
    if (size > 0) mustBeType(request, ["application/json"]);
    return Buffer.concat(parts);
  }

  #openApi(request: AnyRequest, response: AnyResponse): void {
    if (request.method !== "GET") {
      response.setHeader("allow", "GET");
      throw new ServiceError("METHOD_NOT_ALLOWED", `this path takes GET, not ${request.method}`);
    }
    const { openApi } = this.#options;
    response.writeHead(200, { "content-type": "application/json", "content-length": openApi.byteLength });
    response.end(openApi);
  }

  #fail(error: unknown, requestId: string, request: AnyRequest, response: AnyResponse): void {
    const known = fromPipeline(error, requestId);
    if (known.reason === "INTERNAL" && !(error instanceof ConnectError)) {
      this.#options.log.error("rest request failed", { requestId, error });
    }
    const problem = problemOf(known, requestId);
    if (response.headersSent) {
      // The status is gone: the last line of the stream tells.
      if (!response.destroyed && !response.writableEnded) response.end(`${JSON.stringify({ problem })}\n`);
      return;
    }
    if (response.destroyed) return;
    const body = JSON.stringify(problem);
    response.setHeader(requestIdHeader, requestId);
    if (problem.status === 401) response.setHeader("www-authenticate", "Bearer");
    // What is left of the body will not be read: an HTTP/1.1 connection cannot be used again.
    if (!request.complete && request.httpVersionMajor === 1) response.setHeader("connection", "close");
    response.writeHead(problem.status, {
      "content-type": "application/problem+json",
      "content-length": Buffer.byteLength(body),
    });
    response.end(body);
    request.resume();
  }
}

/** A request target that begins with two slashes is a path, although a URL would read a host there. */
function targetOf(target: string): URL {
  const base = "https://gateway.invalid";
  const text = target.startsWith("/") ? `${base}${target}` : target;
  if (!URL.canParse(text, base)) throw new ServiceError("ROUTE_UNKNOWN", "the request target is not a path");
  return new URL(text, base);
}

/** Errors of the pipeline are in their wire form already; whatever else comes is ours or unknown. */
function fromPipeline(error: unknown, requestId: string): ServiceError {
  if (isServiceError(error)) return error;
  if (error instanceof ConnectError) {
    if (isServiceError(error.cause)) return error.cause;
    const info = error.findDetails(ErrorInfoSchema)[0];
    if (info && Object.hasOwn(errorCatalogue, info.reason)) {
      const { nextStep, metadata } = info;
      return new ServiceError(info.reason as ErrorReason, error.rawMessage, { nextStep, metadata });
    }
  }
  return toServiceError(error, undefined, requestId);
}

const registry = createRegistry();

/** Absent fields are written with their defaults, so that an answer has the shape that the document promises. */
function json(context: HandlerContext, message: Message): string {
  return toJsonString(context.method.output, message, { alwaysEmitImplicit: true, registry });
}

function mustBeType(request: AnyRequest, allowed: readonly string[]): void {
  const type = (request.headers["content-type"] ?? "").split(";", 1)[0]?.trim().toLowerCase() ?? "";
  if (!allowed.includes(type)) {
    throw new ServiceError(
      "UNSUPPORTED_MEDIA_TYPE",
      `the body must be ${allowed.join(" or ")}, not ${type || "untyped"}`,
    );
  }
  const encoding = request.headers["content-encoding"];
  if (encoding !== undefined && encoding !== "identity") {
    throw new ServiceError("UNSUPPORTED_MEDIA_TYPE", `the body must not be encoded as ${encoding}`);
  }
}

function mustBeEmpty(request: AnyRequest): void {
  const { "content-length": length, "transfer-encoding": transfer } = request.headers;
  if ((length !== undefined && length !== "0") || transfer !== undefined) {
    throw new ServiceError("MALFORMED_MESSAGE", `a ${request.method} request has no body here`);
  }
}

async function* chunks(request: AnyRequest, wrap: (chunk: Uint8Array) => Message): AsyncGenerator<Message> {
  for await (const part of request as AsyncIterable<Uint8Array>) {
    for (let from = 0; from < part.byteLength; from += chunkBytes) yield wrap(part.subarray(from, from + chunkBytes));
  }
}

function chunkOf(message: Message): Uint8Array {
  if ("chunk" in message && message.chunk instanceof Uint8Array) return message.chunk;
  throw new Error(`${message.$typeName} has no chunk`);
}

function copyHeaders(headers: Headers, response: AnyResponse): void {
  if (response.headersSent) return;
  for (const [name, value] of headers) response.setHeader(name, value);
}

/** The request's headers, without the pseudo headers of HTTP/2. */
export function webHeaders(request: AnyRequest): Headers {
  const headers = new Headers();
  for (const [name, value] of Object.entries(request.headers)) {
    if (name.startsWith(":") || value === undefined) continue;
    headers.set(name, Array.isArray(value) ? value.join(", ") : value);
  }
  return headers;
}

/** Writes and waits until there is room for more. Rejects when the client is gone. */
async function write(response: AnyResponse, content: string | Uint8Array): Promise<void> {
  if (response.destroyed) throw new ServiceError("CANCELED", "the client is gone");
  if (response.write(content)) return;
  await new Promise<void>((resolve) => {
    const done = () => {
      response.off("drain", done);
      response.off("close", done);
      resolve();
    };
    response.once("drain", done);
    response.once("close", done);
  });
}
