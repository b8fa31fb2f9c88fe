import { createHash } from "node:crypto";
import { readFileSync } from "node:fs";
import { type Clock, mib, ServiceError } from "@unkey/base";
import type { Secret } from "@unkey/daemon";
import { AwsV4Signer } from "aws4fetch";
import { Agent, type Dispatcher, request } from "undici";
import { completionOf, elementsOf, textOf, textsOf, type UploadedPart } from "./s3-answers.ts";
import { isRefusal, pause, S3Failure, withRetries } from "./s3-failure.ts";

export interface S3Settings {
  /** `https://host[:port]` of the service; the bucket is the first segment of each path. */
  readonly endpoint: string;
  readonly region: string;
  /** Exists already. */
  readonly bucket: string;
  readonly accessKeyId: string;
  readonly secretAccessKey: Secret;
  /** PEM of the authorities that may vouch for the endpoint instead of the system's own. */
  readonly caFile: string | undefined;
}

export interface StoredObject {
  readonly key: string;
  readonly sizeBytes: number;
}

export interface UnfinishedUpload {
  readonly key: string;
  readonly uploadId: string;
  /** NaN when the service does not say. */
  readonly begunAtMs: number;
}

interface Call {
  readonly method: "GET" | "HEAD" | "PUT" | "POST" | "DELETE";
  /** Empty for the bucket itself. Of the characters that need no escape. */
  readonly key: string;
  readonly query?: Readonly<Record<string, string>>;
  readonly body?: Uint8Array | string;
  readonly headers?: Readonly<Record<string, string>>;
}

const maxAnswerBytes = 8 * mib;
const emptyDigest = createHash("sha256").digest("hex");

/**
 * Objects of one bucket of any service that speaks S3. Every body carries its SHA-256 under the signature, so that the
 * server refuses what was damaged on its way; every call may be repeated, and is after a failure that may pass.
 * Throws BLOB_STORE_UNAVAILABLE when tries run out, BLOB_STORE_REFUSED when the service says no.
 */
export class S3Client implements AsyncDisposable {
  readonly #settings: S3Settings;
  readonly #clock: Clock;
  readonly #agent: Agent;

  constructor(settings: S3Settings, clock: Clock) {
    this.#settings = settings;
    this.#clock = clock;
    this.#agent = new Agent({
      connections: 16,
      headersTimeout: 60_000,
      bodyTimeout: 60_000,
      connect: {
        timeout: 10_000,
        ...(settings.caFile === undefined ? {} : { ca: readFileSync(settings.caFile, "utf8") }),
      },
    });
  }

  /** Stores an object in one request. */
  async put(key: string, bytes: Uint8Array, signal: AbortSignal): Promise<void> {
    await this.#answer({ method: "PUT", key, body: bytes }, signal);
  }

  /** An object's length and what changes with its bytes; undefined when there is none. */
  async head(
    key: string,
    signal: AbortSignal,
  ): Promise<{ readonly sizeBytes: number; readonly etag: string } | undefined> {
    try {
      const { headers } = await this.#answer({ method: "HEAD", key }, signal);
      return { sizeBytes: Number(headers["content-length"]), etag: String(headers["etag"]) };
    } catch (error) {
      if (isRefusal(error, 404)) return undefined;
      throw error;
    }
  }

  /**
   * Bytes of an object from `offset`; undefined when there is none. A transfer that breaks goes on where it broke, unless the
   * object is another one by then.
   */
  async get(key: string, offset: number, signal: AbortSignal): Promise<AsyncIterable<Uint8Array> | undefined> {
    try {
      const first = await this.#part(key, offset, {}, signal);
      return this.#resuming(key, offset, first, signal);
    } catch (error) {
      if (isRefusal(error, 404)) return undefined;
      throw error;
    }
  }

  async *#resuming(
    key: string,
    offset: number,
    first: Dispatcher.ResponseData,
    signal: AbortSignal,
  ): AsyncGenerator<Uint8Array> {
    const { etag } = first.headers;
    const same = typeof etag === "string" ? { "if-match": etag } : {};
    const end = offset + Number(first.headers["content-length"]);
    let position = offset;
    let body: AsyncIterable<Uint8Array> = first.body;
    for (let failed = 0; ; failed++) {
      try {
        for await (const chunk of withFailures(body)) {
          position += chunk.length;
          failed = 0;
          yield chunk;
        }
        return;
      } catch (error) {
        await pause(this.#clock, error, failed, signal);
      }
      if (position >= end) return;
      ({ body } = await this.#part(key, position, same, signal));
    }
  }

  #part(
    key: string,
    offset: number,
    conditions: Readonly<Record<string, string>>,
    signal: AbortSignal,
  ): Promise<Dispatcher.ResponseData> {
    const headers = { ...conditions, ...(offset === 0 ? {} : { range: `bytes=${offset}-` }) };
    return withRetries(this.#clock, signal, async () => {
      const response = await this.#send({ method: "GET", key, headers }, signal);
      if (offset === 0 || response.statusCode === 206) return response;
      await response.body.dump();
      throw new ServiceError("BLOB_STORE_REFUSED", "the S3 service answers no ranges");
    });
  }

  /** An object that is not there is success. */
  async delete(key: string, signal: AbortSignal): Promise<void> {
    try {
      await this.#answer({ method: "DELETE", key }, signal);
    } catch (error) {
      if (!isRefusal(error, 404)) throw error;
    }
  }

  /** Every object below a prefix, in the order of the keys. */
  async *list(prefix: string, signal: AbortSignal, pageSize = 1000): AsyncGenerator<StoredObject> {
    let token: string | undefined;
    do {
      const page = { "list-type": "2", prefix, "max-keys": String(pageSize) };
      const query = { ...page, ...(token === undefined ? {} : { "continuation-token": token }) };
      const { text } = await this.#answer({ method: "GET", key: "", query }, signal);
      for (const element of elementsOf(text, "Contents")) {
        const key = textOf(element, "Key");
        if (key !== undefined) yield { key, sizeBytes: Number(textOf(element, "Size") ?? "0") };
      }
      token = textOf(text, "IsTruncated") === "true" ? textOf(text, "NextContinuationToken") : undefined;
    } while (token !== undefined);
  }

  /** Begins an object that arrives in parts; answers the id of the upload. */
  async beginParts(key: string, signal: AbortSignal): Promise<string> {
    const { text } = await this.#answer({ method: "POST", key, query: { uploads: "" } }, signal);
    const uploadId = textOf(text, "UploadId");
    if (uploadId === undefined) throw new ServiceError("BLOB_STORE_REFUSED", "the S3 service names no upload");
    return uploadId;
  }

  /** Sends one part, of at least 5 MiB unless it is the last. The same number again replaces it. */
  async putPart(
    key: string,
    uploadId: string,
    number: number,
    bytes: Uint8Array,
    signal: AbortSignal,
  ): Promise<UploadedPart> {
    const query = { partNumber: String(number), uploadId };
    const { headers } = await this.#answer({ method: "PUT", key, query, body: bytes }, signal);
    const { etag } = headers;
    if (typeof etag !== "string") throw new ServiceError("BLOB_STORE_REFUSED", "the S3 service names no part");
    return { number, etag };
  }

  /** Makes the object of its parts. */
  async completeParts(
    key: string,
    uploadId: string,
    parts: readonly UploadedPart[],
    signal: AbortSignal,
  ): Promise<void> {
    const call: Call = { method: "POST", key, query: { uploadId }, body: completionOf(parts) };
    try {
      await withRetries(this.#clock, signal, async () => {
        // The service may answer 200 before it knows how it ends, and tell a failure in the body.
        const { text } = await this.#once(call, signal);
        const code = /<Error>/.test(text) ? textOf(text, "Code") : undefined;
        if (code !== undefined) throw new S3Failure(code === "InternalError" ? 500 : 400, code);
      });
    } catch (error) {
      // A try whose answer was lost has made the object and ended the upload.
      if (isRefusal(error, 404) && (await this.head(key, signal)) !== undefined) return;
      throw error;
    }
  }

  /** Gives an upload up; one that is gone is success. */
  async abortParts(key: string, uploadId: string, signal: AbortSignal): Promise<void> {
    try {
      await this.#answer({ method: "DELETE", key, query: { uploadId } }, signal);
    } catch (error) {
      if (!isRefusal(error, 404)) throw error;
    }
  }

  /** Uploads that were begun below a prefix and neither completed nor given up; a thousand at most. */
  async listParts(prefix: string, signal: AbortSignal): Promise<UnfinishedUpload[]> {
    const { text } = await this.#answer({ method: "GET", key: "", query: { uploads: "", prefix } }, signal);
    return elementsOf(text, "Upload").flatMap((element) => {
      const [key] = textsOf(element, "Key");
      const [uploadId] = textsOf(element, "UploadId");
      const begunAtMs = Date.parse(textOf(element, "Initiated") ?? "");
      return key === undefined || uploadId === undefined ? [] : [{ key, uploadId, begunAtMs }];
    });
  }

  /** Fails when the bucket cannot be used: for health. */
  async check(signal: AbortSignal): Promise<void> {
    await this.#once({ method: "HEAD", key: "" }, signal).catch((error: unknown) => {
      throw error instanceof S3Failure ? error.asServiceError() : error;
    });
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.#agent.destroy();
  }

  #answer(call: Call, signal: AbortSignal): Promise<Answer> {
    return withRetries(this.#clock, signal, () => this.#once(call, signal));
  }

  async #once(call: Call, signal: AbortSignal): Promise<Answer> {
    const { body, headers } = await this.#send(call, signal);
    return { headers, text: await bounded(body) };
  }

  /** The answer's head; throws S3Failure unless the status is a success. */
  async #send(
    { method, key, query = {}, body, headers = {} }: Call,
    signal: AbortSignal,
  ): Promise<Dispatcher.ResponseData> {
    const { endpoint, region, bucket, accessKeyId, secretAccessKey } = this.#settings;
    const url = new URL(`/${bucket}${key === "" ? "" : `/${key}`}`, endpoint);
    for (const [name, value] of Object.entries(query)) url.searchParams.set(name, value);
    const digest = body === undefined ? emptyDigest : createHash("sha256").update(body).digest("hex");
    const signed = await new AwsV4Signer({
      method,
      url: url.href,
      headers: { ...headers, "x-amz-content-sha256": digest },
      accessKeyId,
      secretAccessKey: secretAccessKey.reveal(),
      service: "s3",
      region,
      datetime: new Date(this.#clock.nowMs()).toISOString().replace(/[:-]|\.\d{3}/g, ""),
    }).sign();
    const response = await request(signed.url, {
      method,
      headers: Object.fromEntries(signed.headers),
      ...(body === undefined ? {} : { body }),
      signal,
      dispatcher: this.#agent,
    }).catch((error: unknown) => {
      signal.throwIfAborted();
      throw S3Failure.ofTransport(error);
    });
    if (response.statusCode >= 200 && response.statusCode < 300) return response;
    const text = await bounded(response.body).catch(() => "");
    throw new S3Failure(response.statusCode, textOf(text, "Code") ?? "", response.headers["retry-after"]);
  }
}

interface Answer {
  readonly headers: Dispatcher.ResponseData["headers"];
  readonly text: string;
}

async function bounded(body: AsyncIterable<Uint8Array>): Promise<string> {
  const chunks: Uint8Array[] = [];
  let bytes = 0;
  for await (const chunk of withFailures(body)) {
    bytes += chunk.length;
    if (bytes > maxAnswerBytes) throw new ServiceError("BLOB_STORE_REFUSED", "the S3 service answers without end");
    chunks.push(chunk);
  }
  return Buffer.concat(chunks).toString("utf8");
}

async function* withFailures(body: AsyncIterable<Uint8Array>): AsyncGenerator<Uint8Array> {
  try {
    yield* body;
  } catch (error) {
    throw S3Failure.ofTransport(error);
  }
}
