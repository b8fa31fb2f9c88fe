import type { IncomingHttpHeaders } from "node:http";
import type { Http2ServerRequest, Http2ServerResponse } from "node:http2";
import { isErrno } from "@unkey/base";
import { type Dispatcher, errors } from "undici";
import { clientHeaders, upstreamHeaders } from "../domain/proxy-headers.ts";
import { BodyMeter, BodyStalled, BodyTooLarge } from "./body-meter.ts";
import { type Refusal, refusals } from "./pages.ts";
import { type AppRoute, pickUpstream } from "./route-map.ts";
import type { Upstream } from "./upstream.ts";

export interface ProxyCall {
  readonly route: AppRoute;
  readonly request: Http2ServerRequest;
  readonly response: Http2ServerResponse;
  readonly authority: string;
  readonly clientAddress: string;
  readonly maxBodyBytes: number;
  readonly random: () => number;
}

const bodyless = new Set([204, 304]);

/**
 * Sends one request to a VM of the app and its answer back, streaming both ways. Undefined when the client got the
 * app's answer, or as much of it as there was; otherwise what to tell the client instead.
 */
export async function proxyRequest(call: ProxyCall): Promise<Refusal | undefined> {
  const { route, request, random } = call;
  const first = pickUpstream(route, Date.now(), random);
  if (!first) return refusals.busy(route.appName);
  const withBody = hasBody(request);
  const failure = await send(call, first, withBody);
  if (failure === undefined) return undefined;
  // Nothing of the answer was seen and nothing but the head was sent: another VM, or a fresh connection, may do better.
  const again =
    !withBody && failure.beforeAnswer && isSafe(request.method) && isErrno(failure.error, ...connectionLosses);
  if (again && !request.stream?.destroyed) {
    first.suspect(Date.now());
    const second = pickUpstream(route, Date.now(), random, route.upstreams.length > 1 ? first : undefined);
    const repeated = second ? await send(call, second, false) : failure;
    return repeated && refusalFor(call, repeated);
  }
  return refusalFor(call, failure);
}

interface Failure {
  readonly error: Error;
  /** The client has seen nothing of an answer yet. */
  readonly beforeAnswer: boolean;
}

function send(call: ProxyCall, upstream: Upstream, withBody: boolean): Promise<Failure | undefined> {
  const { request, response, authority, clientAddress, maxBodyBytes } = call;
  const leave = upstream.enter();
  const body = withBody ? new BodyMeter(request, maxBodyBytes) : null;
  return new Promise<Failure | undefined>((resolve) => {
    let controller: Dispatcher.DispatchController | undefined;
    const onClientGone = () => controller?.abort(new Error("the client is gone"));
    const onDrain = () => controller?.resume();
    const settle = (failure: Failure | undefined) => {
      response.off("close", onClientGone);
      response.off("drain", onDrain);
      body?.destroy();
      leave();
      resolve(failure);
    };
    response.once("close", onClientGone);
    response.on("drain", onDrain);
    try {
      upstream.pool.dispatch(
        {
          path: request.url,
          method: request.method,
          headers: upstreamHeaders(request.headers, { address: clientAddress, authority }),
          body,
        },
        {
          onRequestStart: (started) => {
            controller = started;
            if (response.destroyed) started.abort(new Error("the client is gone"));
          },
          onResponseStart: (_controller, status, headers) => {
            if (status < 200) return; // informational; the final answer follows
            writeHead(response, status, headers);
          },
          onResponseData: (active, chunk) => {
            if (!response.write(chunk)) active.pause();
          },
          onResponseEnd: (_controller, trailers) => {
            if (Object.keys(trailers ?? {}).length > 0) response.addTrailers(clientHeaders(trailers));
            response.end();
            settle(undefined);
          },
          onResponseError: (_controller, error) => {
            const beforeAnswer = !response.headersSent;
            // Half an answer must not look like a whole one.
            if (!beforeAnswer) response.destroy();
            settle({ error, beforeAnswer });
          },
        },
      );
    } catch (error) {
      // undici refuses what it cannot put on the wire, such as a content-length that is no number.
      settle({ error: error instanceof Error ? error : new Error(String(error)), beforeAnswer: !response.headersSent });
    }
  });
}

function writeHead(response: Http2ServerResponse, status: number, headers: IncomingHttpHeaders): void {
  const kept = clientHeaders(headers);
  for (const [name, value] of Object.entries(kept)) response.setHeader(name, value);
  response.writeHead(status);
  // The app may take its time with the first byte of the body; the client need not wait for the head.
  if (!bodyless.has(status)) (response as Http2ServerResponse & { flushHeaders(): void }).flushHeaders();
}

function refusalFor({ route, maxBodyBytes }: ProxyCall, { error, beforeAnswer }: Failure): Refusal | undefined {
  if (!beforeAnswer) return undefined;
  const cause = error.cause ?? error;
  if (error instanceof BodyTooLarge || cause instanceof BodyTooLarge) return refusals.tooLarge(maxBodyBytes);
  if (error instanceof BodyStalled || cause instanceof BodyStalled) return refusals.bodyStalled();
  if (error instanceof errors.HeadersTimeoutError || error instanceof errors.BodyTimeoutError)
    return refusals.late(route.appName);
  if (error instanceof errors.InvalidArgumentError || error instanceof errors.RequestContentLengthMismatchError) {
    return refusals.malformed("The request cannot be passed on as it is.");
  }
  return refusals.dead(route.appName);
}

const connectionLosses = [
  "ECONNREFUSED",
  "ECONNRESET",
  "EHOSTUNREACH",
  "EPIPE",
  "UND_ERR_SOCKET",
  "UND_ERR_CONNECT_TIMEOUT",
] as const;

function isSafe(method: string): boolean {
  return method === "GET" || method === "HEAD" || method === "OPTIONS";
}

/** True when a body follows the head. */
function hasBody(request: Http2ServerRequest): boolean {
  if (request.httpVersionMajor === 2) return !request.stream.endAfterHeaders;
  const { "content-length": length, "transfer-encoding": transfer } = request.headers;
  return transfer !== undefined || (length !== undefined && length !== "0");
}
