type Headers = Readonly<Record<string, string | readonly string[] | undefined>>;

/** Fields that concern one connection only (RFC 9110 §7.6.1), and `expect`, which the gateway has answered itself. */
const hopByHop = new Set([
  "connection",
  "keep-alive",
  "proxy-connection",
  "proxy-authenticate",
  "proxy-authorization",
  "te",
  "trailer",
  "transfer-encoding",
  "upgrade",
  "http2-settings",
  "expect",
]);

/**
 * Fields that only the gateway may set: an app believes them. Apps that are handed fields as variables (RFC 3875 §4.1.18)
 * cannot tell `-` from `_`, and take a field `proxy` for the setting HTTP_PROXY (https://httpoxy.org/).
 */
const gatewayOwn = /^(?:x[-_]forwarded[-_].*|forwarded|x[-_]real[-_]ip|x[-_]unkey[-_].*|unkey[-_].*|proxy)$/;

export interface ClientFacts {
  readonly address: string;
  /** The authority that the client asked for, port included. */
  readonly authority: string;
}

/** What the app gets to see of a request's headers, as flat name-value pairs. */
export function upstreamHeaders(headers: Headers, client: ClientFacts): string[] {
  const dropped = connectionFields(headers);
  const pairs = ["host", client.authority];
  for (const [name, value] of Object.entries(headers)) {
    if (value === undefined || name.startsWith(":") || name === "host") continue;
    if (hopByHop.has(name) || dropped.has(name) || gatewayOwn.test(name)) continue;
    for (const each of typeof value === "string" ? [value] : value) pairs.push(name, each);
  }
  pairs.push("x-forwarded-for", client.address, "x-forwarded-proto", "https", "x-forwarded-host", client.authority);
  return pairs;
}

/** What the client gets to see of the app's answer. */
export function clientHeaders(headers: Headers): Record<string, string | string[]> {
  const dropped = connectionFields(headers);
  const kept: Record<string, string | string[]> = {};
  for (const [name, value] of Object.entries(headers)) {
    if (value === undefined || hopByHop.has(name) || dropped.has(name) || name.startsWith(":")) continue;
    kept[name] = typeof value === "string" ? value : [...value];
  }
  return kept;
}

/** Names that the Connection field adds to the hop-by-hop ones. */
function connectionFields(headers: Headers): Set<string> {
  const value = headers["connection"];
  const list = typeof value === "string" ? value : (value ?? []).join(",");
  return new Set(
    list
      .toLowerCase()
      .split(",")
      .map((name) => name.trim()),
  );
}
