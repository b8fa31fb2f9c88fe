import { isIP } from "node:net";

/* What an address or a failed connection says about itself. */

/** True for `localhost`, 127.0.0.0/8 and ::1: what never leaves the host. */
export function isLoopback(host: string): boolean {
  const name = host.replace(/:\d+$/, "").replace(/^\[|\]$/g, "");
  return name === "localhost" || name === "::1" || (isIP(name) === 4 && name.startsWith("127."));
}

/** The `code` of a Node or undici error; empty without one. */
export function errorCode(error: unknown): string {
  return error instanceof Error && "code" in error && typeof error.code === "string" ? error.code : "";
}

/** True for failures of the network, as opposed to those of ours. */
export function isTransportCode(code: string): boolean {
  return /^(UND_ERR_|E(CONN|HOST|NET|PIPE|TIMEDOUT|NOTFOUND|AI_|PROTO|ADDR)|ERR_(SSL|TLS)|HPE_|CERT_|DEPTH_|SELF_|UNABLE_)/.test(
    code,
  );
}

/** True when the other end answered a TLS greeting as a server does that knows no TLS. */
export function speaksNoTls(error: unknown): boolean {
  return /^(EPROTO|ERR_SSL_|ECONNRESET|UND_ERR_SOCKET)/.test(errorCode(error));
}

/** True when there is no connection at all. */
export function isConnectCode(code: string): boolean {
  return /^(UND_ERR_CONNECT_TIMEOUT|ECONNREFUSED|EHOST|ENET|EAI_|ETIMEDOUT|EADDR)/.test(code);
}

/** True when the other end's certificate is not for its name, has ended, or comes from an unknown authority. */
export function isCertificateCode(code: string): boolean {
  return /CERT|SELF_SIGNED|ALTNAME|^UNABLE_TO_VERIFY/.test(code);
}

/** True when the answer breaks the protocol: headers without end, bytes that are none of it. */
export function speaksNoHttp(code: string): boolean {
  return /^(HPE_|UND_ERR_HEADERS_OVERFLOW)/.test(code);
}

/** True when the same attempt would fail alike: a name that does not exist. */
export function isLasting(code: string): boolean {
  return code === "ENOTFOUND";
}
