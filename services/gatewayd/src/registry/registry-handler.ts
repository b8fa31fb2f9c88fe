import type { Http2ServerRequest, Http2ServerResponse } from "node:http2";
import { isServiceError, newId, ServiceError } from "@unkey/base";
import type { Logger, Metrics } from "@unkey/daemon";
import { requestIdHeader, toServiceError } from "@unkey/rpc";
import type { ApiKeyRow } from "../store/key-store.ts";
import type { BlobService } from "./blobs.ts";
import type { DiscoveryService } from "./discovery.ts";
import { answerJson, type Exchange } from "./exchange.ts";
import type { ManifestService } from "./manifests.ts";
import { registryFailureOf } from "./registry-errors.ts";
import { actOf, challenge, type RegistryGate, scopeOf, targetOf } from "./registry-gate.ts";
import { type RegistryResource, type RegistryVerb, routeOf, verbsOf } from "./registry-route.ts";
import { RequestBody } from "./request-body.ts";
import type { UploadService } from "./uploads.ts";

export interface RegistryHandlerDeps {
  readonly gate: RegistryGate;
  readonly blobs: BlobService;
  readonly uploads: UploadService;
  readonly manifests: ManifestService;
  readonly discovery: DiscoveryService;
  readonly log: Logger;
  readonly metrics: Metrics;
  readonly abort: AbortSignal;
}

/** What a request did, for the audit log. */
interface Done {
  readonly changed: boolean;
  /** Of the manifest that was pushed under a tag. */
  readonly digest?: string;
}

const unchanged: Done = { changed: false };
const requestIdPattern = /^[A-Za-z0-9_.-]{1,128}$/;

/**
 * The OCI distribution API below `/v2/` (https://github.com/opencontainers/distribution-spec/blob/v1.1.1/spec.md): what
 * `docker push` and `docker pull` speak. Authenticates, authorizes, limits and records each request, then lets the part
 * of the registry that it is about answer.
 */
export class RegistryHandler {
  readonly #deps: RegistryHandlerDeps;
  readonly #requests;

  constructor(deps: RegistryHandlerDeps) {
    this.#deps = deps;
    this.#requests = deps.metrics.counter(
      "unkey_registry_requests_total",
      "Requests to the registry by act and status.",
    );
  }

  async serve(request: Http2ServerRequest, response: Http2ServerResponse): Promise<void> {
    const { gate } = this.#deps;
    const requestId = requestIdOf(request);
    const aborted = new AbortController();
    response.once("close", () => aborted.abort());
    response.setHeader(requestIdHeader, requestId);
    response.setHeader("docker-distribution-api-version", "registry/2.0");

    let key: ApiKeyRow | undefined;
    let resource: RegistryResource = { kind: "base" };
    let verb: RegistryVerb = "GET";
    let done = unchanged;
    let outcome = "ok";
    const outbox: Exchange["outbox"] = {};
    try {
      const [path = "", query = ""] = split(request.url);
      resource = routeOf(path);
      verb = verbOf(resource, request, response);
      key = await gate.identify(request.headers.authorization);
      gate.admit(key, scopeOf(resource, verb), (name, value) => response.setHeader(name, value));
      using inForce = gate.stream(key);
      const acting = { tenantId: key.tenantId, subject: key.apiKeyId, roles: key.scopes, requestId };
      const lasting = AbortSignal.any([this.#deps.abort, inForce.signal]);
      done = await this.#run(resource, verb, {
        request,
        response,
        query: new URLSearchParams(query),
        body: new RequestBody(request),
        acting,
        signal: AbortSignal.any([aborted.signal, lasting]),
        lasting: { acting, signal: lasting },
        outbox,
      });
    } catch (error) {
      outcome = this.#fail(error, { request, response, requestId, gone: aborted.signal.aborted, outbox });
    }
    const act = actOf(resource, verb);
    // Every client begins by asking without a key whether it needs one.
    const isFirstAsk = resource.kind === "base" && request.headers.authorization === undefined;
    if (!isFirstAsk) {
      await gate.record({
        key,
        act,
        target: targetOf(resource, done.digest),
        outcome,
        changed: done.changed,
        requestId,
      });
    }
    outbox.send?.();
    this.#requests.inc({ act: act.name, status: String(response.statusCode) });
  }

  async #run(resource: RegistryResource, verb: RegistryVerb, exchange: Exchange): Promise<Done> {
    const { blobs, uploads, manifests, discovery } = this.#deps;
    const { tenantId } = exchange.acting;
    if (resource.kind === "base") answerJson(exchange, "application/json", {});
    if (resource.kind === "catalog") await discovery.repositories(exchange);
    if (!("repository" in resource)) return unchanged;
    const place = { tenantId, repository: resource.repository };
    switch (resource.kind) {
      case "tags":
        await discovery.tags(exchange, place);
        return unchanged;
      case "referrers":
        await discovery.referrers(exchange, place, resource.digest);
        return unchanged;
      case "uploads":
        return { changed: await uploads.begin(exchange, place) };
      case "upload": {
        const { uploadId } = resource;
        if (verb === "PUT") return { changed: await uploads.finish(exchange, place, uploadId) };
        if (verb === "PATCH") await uploads.append(exchange, place, uploadId);
        else if (verb === "DELETE") await uploads.cancel(exchange, place, uploadId);
        else await uploads.status(exchange, place, uploadId);
        return unchanged;
      }
      case "blob":
        if (verb !== "DELETE") await blobs.pull(exchange, place, resource.digest);
        else await blobs.delete(exchange, place, resource.digest);
        return { changed: verb === "DELETE" };
      case "manifest": {
        const { reference } = resource;
        if (verb === "PUT") return { changed: true, digest: await manifests.push(exchange, place, reference) };
        if (verb !== "DELETE") await manifests.pull(exchange, place, reference);
        else await manifests.delete(exchange, place, reference);
        return { changed: verb === "DELETE" };
      }
    }
  }

  /** Prepares the answer to an error; returns its reason. */
  #fail(
    error: unknown,
    call: {
      readonly request: Http2ServerRequest;
      readonly response: Http2ServerResponse;
      readonly requestId: string;
      readonly gone: boolean;
      readonly outbox: Exchange["outbox"];
    },
  ): string {
    const { request, response, requestId, gone, outbox } = call;
    const known = isServiceError(error) ? error : toServiceError(error, undefined, requestId);
    if (gone) return "CANCELED";
    if (["internal", "data_loss", "unknown"].includes(known.code)) {
      this.#deps.log.error("registry request failed", { requestId, path: request.url.slice(0, 300), error });
    }
    if (response.headersSent) {
      // The status is gone: only a broken connection tells that the bytes are not whole.
      response.destroy(known);
      return known.reason;
    }
    const { status, code, message } = registryFailureOf(known, requestId);
    const detail = { reason: known.reason, requestId, ...known.metadata };
    const body = JSON.stringify({ errors: [{ code, message, detail }] });
    if (status === 401) response.setHeader("www-authenticate", challenge);
    if (status === 429 && !response.hasHeader("retry-after")) response.setHeader("retry-after", "1");
    // What is left of the body will not be read: an HTTP/1.1 connection cannot be used again.
    if (!request.complete && request.httpVersionMajor === 1) response.setHeader("connection", "close");
    outbox.send = () => {
      if (response.destroyed) return;
      response.writeHead(status, { "content-type": "application/json", "content-length": Buffer.byteLength(body) });
      if (request.method === "HEAD") response.end();
      else response.end(body);
      request.resume();
    };
    return known.reason;
  }
}

function verbOf(
  { kind }: RegistryResource,
  { method }: Http2ServerRequest,
  response: Http2ServerResponse,
): RegistryVerb {
  const verb = verbsOf[kind].find((each) => each === method);
  if (verb !== undefined) return verb;
  const allow = verbsOf[kind].join(", ");
  response.setHeader("allow", allow);
  throw new ServiceError("METHOD_NOT_ALLOWED", `this path takes ${allow}, not ${method}`);
}

function requestIdOf(request: Http2ServerRequest): string {
  const given = request.headers[requestIdHeader];
  return typeof given === "string" && requestIdPattern.test(given) ? given : newId("req");
}

function split(target: string): string[] {
  const at = target.indexOf("?");
  return at < 0 ? [target] : [target.slice(0, at), target.slice(at + 1)];
}
