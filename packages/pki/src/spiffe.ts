import type { X509Certificate } from "node:crypto";

/** Who a certificate speaks for: `spiffe://<trust-domain>/<service>[/<instance>]`. */
export interface SpiffeId {
  readonly trustDomain: string;
  readonly service: string;
  readonly instance?: string;
}

// https://github.com/spiffe/spiffe/blob/main/standards/SPIFFE-ID.md §2, narrowed to one or two path segments.
const idPattern = /^spiffe:\/\/([a-z0-9._-]{1,255})\/([a-z0-9-]{1,64})(?:\/([A-Za-z0-9._-]{1,128}))?$/;

export function formatSpiffeId({ trustDomain, service, instance }: SpiffeId): string {
  return `spiffe://${trustDomain}/${service}${instance === undefined ? "" : `/${instance}`}`;
}

export function parseSpiffeId(uri: string): SpiffeId | undefined {
  const [, trustDomain, service, instance] = idPattern.exec(uri) ?? [];
  if (trustDomain === undefined || service === undefined) return undefined;
  return { trustDomain, service, ...(instance === undefined ? {} : { instance }) };
}

/** The SPIFFE id of a certificate, which must have exactly one URI among its alternative names. */
export function spiffeIdOf(certificate: X509Certificate): SpiffeId | undefined {
  return spiffeIdOfNames(certificate.subjectAltName ?? "");
}

/**
 * The same from Node's text form of the alternative names, `URI:spiffe://…, DNS:…`. Node quotes a name that holds a
 * comma, so a name cannot smuggle in another.
 */
export function spiffeIdOfNames(subjectAltName: string): SpiffeId | undefined {
  const uris = subjectAltName.split(", ").filter((name) => name.startsWith("URI:"));
  return uris.length === 1 ? parseSpiffeId(uris[0]?.slice("URI:".length) ?? "") : undefined;
}
