import { type Answer, ask } from "./http.ts";
import type { Gateway } from "./platform.ts";

export interface RestAnswer extends Answer {
  readonly json: Record<string, unknown>;
}

/** One call of the REST surface. */
export async function rest(
  gateway: Gateway,
  method: string,
  path: string,
  options: {
    readonly body?: unknown;
    readonly raw?: string | Uint8Array;
    readonly headers?: Readonly<Record<string, string>>;
    readonly key?: string | undefined;
  } = {},
): Promise<RestAnswer> {
  const body = options.raw ?? (options.body === undefined ? undefined : JSON.stringify(options.body));
  const key = "key" in options ? options.key : gateway.key;
  const answer = await ask({
    port: Number(new URL(gateway.apiOrigin).port),
    ca: gateway.ca,
    method,
    path,
    headers: {
      ...(key === undefined ? {} : { authorization: `Bearer ${key}` }),
      ...(body === undefined
        ? {}
        : { "content-type": "application/json", "content-length": String(Buffer.byteLength(body)) }),
      ...options.headers,
    },
    ...(body === undefined ? {} : { body }),
  });
  const type = String(answer.headers["content-type"] ?? "");
  const isJson = type.endsWith("json") && !type.endsWith("ndjson");
  return { ...answer, json: isJson ? (JSON.parse(answer.body) as Record<string, unknown>) : {} };
}
