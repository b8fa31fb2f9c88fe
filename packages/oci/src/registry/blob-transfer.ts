import { mib, ServiceError } from "@unkey/base";
import type { Dispatcher } from "undici";
import { shortDigest } from "../digest.ts";
import type { Descriptor } from "../documents.ts";
import type { RegistrySession } from "./registry-session.ts";
import { type Retries, Retryable, waitToRetry } from "./retry.ts";

/** A transfer that came this much further since it broke counts as new: a long one may break more often than a short one. */
const progressBytes = mib;

export interface BlobTransfer {
  readonly session: RegistrySession;
  readonly descriptor: Descriptor;
  /** For messages: `the layer of …`. */
  readonly what: string;
  /** Bytes of the blob that the caller has already. */
  readonly from: number;
  readonly retries: Retries;
  readonly signal: AbortSignal;
}

/**
 * The bytes of a blob from `from` on, unverified. A transfer that breaks goes on where it broke, by Range (RFC 9110, section 14)
 * where the registry can, else by reading again what is there already. It is given up when it breaks `retries.attempts`
 * times without progress. Throws what the session throws, and IMAGE_DIGEST_MISMATCH for an announced length that is not the descriptor's.
 */
export async function* transferBlob(transfer: BlobTransfer): AsyncGenerator<Uint8Array> {
  const { session, descriptor, retries, signal } = transfer;
  let at = transfer.from;
  let ranges = true;
  if (at > 0 && at === descriptor.sizeBytes) return;
  for (let failed = 0, failedAt = at; ; ) {
    try {
      const response = await open(transfer, ranges ? at : 0);
      let skip = at;
      if (response.statusCode === 206) {
        if (!startsAt(response, at, descriptor.sizeBytes)) {
          ranges = false; // its ranges cannot be relied on
          response.body.on("error", () => {}).destroy();
          throw session.failures.broken("answers a range with another one");
        }
        skip = 0;
      } else if (response.statusCode === 416) {
        ranges = false;
        response.body.on("error", () => {}).destroy();
        throw session.failures.broken("has no such range of the blob");
      } else checkLength(transfer, response);
      for await (const chunk of session.body(response, signal)) {
        const fresh = skip === 0 ? chunk : chunk.subarray(skip);
        skip -= chunk.length - fresh.length;
        if (fresh.length === 0) continue;
        at += fresh.length;
        yield fresh;
      }
      return; // what is missing now was never there: whoever verifies says so
    } catch (error) {
      // All bytes may be here although the connection broke before it said so.
      if (at === descriptor.sizeBytes && error instanceof Retryable) return;
      if (at - failedAt >= progressBytes) failed = 0;
      failedAt = at;
      await waitToRetry(retries, error, ++failed, signal);
    }
  }
}

function open({ session, descriptor, what, signal }: BlobTransfer, at: number): Promise<Dispatcher.ResponseData> {
  return session.open(
    {
      path: `blobs/${descriptor.digest}`,
      what: `${what} (${shortDigest(descriptor.digest)})`,
      ...(at === 0 ? {} : { headers: { range: `bytes=${at}-` }, statuses: [200, 206, 416] }),
    },
    signal,
  );
}

/** True when a 206 answer holds the blob from `at` to its end. */
function startsAt(response: Dispatcher.ResponseData, at: number, sizeBytes: number): boolean {
  const match = /^bytes (\d+)-(\d+)\/(\d+|\*)$/.exec(String(response.headers["content-range"] ?? ""));
  if (match === null || Number(match[1]) !== at || Number(match[2]) !== sizeBytes - 1) return false;
  return match[3] === "*" || Number(match[3]) === sizeBytes;
}

function checkLength({ descriptor, what }: BlobTransfer, response: Dispatcher.ResponseData): void {
  const announced = response.headers["content-length"];
  if (typeof announced !== "string" || Number(announced) === descriptor.sizeBytes) return;
  const encoding = response.headers["content-encoding"];
  const how = typeof encoding === "string" ? `, sent as ${encoding.slice(0, 40)}` : "";
  response.body.on("error", () => {}).destroy();
  throw new ServiceError(
    "IMAGE_DIGEST_MISMATCH",
    `${what} ${shortDigest(descriptor.digest)} has ${announced} bytes instead of ${descriptor.sizeBytes}${how}`,
  );
}
