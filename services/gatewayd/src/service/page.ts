import { ServiceError } from "@unkey/base";

const defaultPageSize = 100;

/** A page token is the key of the last row, in base64url so that nobody builds one by hand. */
export interface Page {
  readonly limit: number;
  readonly after: string;
}

/** Throws INVALID_REQUEST for a token that is none of ours. */
export function readPage(request: { readonly pageSize: number; readonly pageToken: string }): Page {
  const after = Buffer.from(request.pageToken, "base64url").toString("utf8");
  if (Buffer.from(after).toString("base64url") !== request.pageToken || after.length > 200) {
    throw new ServiceError("INVALID_REQUEST", "page_token: is not a token of an earlier answer");
  }
  return { limit: request.pageSize || defaultPageSize, after };
}

/** The token that leads on from `rows`; empty when they did not fill the page. */
export function nextPageToken<T>(page: Page, rows: readonly T[], keyOf: (row: T) => string): string {
  const last = rows.at(-1);
  return last === undefined || rows.length < page.limit ? "" : Buffer.from(keyOf(last)).toString("base64url");
}
