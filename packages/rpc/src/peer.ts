import type { TLSSocket } from "node:tls";
import { ServiceError } from "@unkey/base";
import { type SpiffeId, spiffeIdOf } from "@unkey/pki";

/** The certificate at the other end of a connection. */
export interface Peer {
  readonly id: SpiffeId;
  readonly notAfterMs: number;
}

/** What OpenSSL's verdicts mean for the reader (https://docs.openssl.org/3.0/man1/openssl-verification-options/). */
const verdicts: Readonly<Record<string, string>> = {
  CERT_HAS_EXPIRED: "the client certificate has expired",
  CERT_NOT_YET_VALID: "the client certificate is not valid yet",
  UNABLE_TO_VERIFY_LEAF_SIGNATURE: "the client certificate was issued by another authority",
  UNABLE_TO_GET_ISSUER_CERT_LOCALLY: "the client certificate was issued by another authority",
  UNABLE_TO_GET_ISSUER_CERT: "the client certificate was issued by another authority",
  DEPTH_ZERO_SELF_SIGNED_CERT: "the client certificate is self-signed",
  SELF_SIGNED_CERT_IN_CHAIN: "the client certificate was issued by another authority",
  CERT_SIGNATURE_FAILURE: "the client certificate was issued by another authority",
  INVALID_PURPOSE: "the client certificate is not meant for clients",
};

/** Judges a finished handshake: the peer, or why it is refused. */
export function peerOf(socket: TLSSocket, trustDomain: string): Peer | ServiceError {
  const certificate = socket.getPeerX509Certificate();
  if (certificate === undefined) return refused("the client presented no certificate");
  if (!socket.authorized) {
    const verdict = String(socket.authorizationError);
    return refused(verdicts[verdict] ?? `the client certificate is refused: ${verdict}`);
  }
  const id = spiffeIdOf(certificate);
  if (id === undefined)
    return refused("the client certificate carries no name of the form spiffe://<domain>/<service>");
  if (id.trustDomain !== trustDomain)
    return refused(`the client certificate belongs to the trust domain ${id.trustDomain}`);
  return { id, notAfterMs: certificate.validToDate.getTime() };
}

/** A connection may outlive the certificate that opened it; its calls may not. */
export function refusedPeer(peer: Peer, nowMs: number): ServiceError | undefined {
  return nowMs < peer.notAfterMs ? undefined : refused("the client certificate of this connection has expired");
}

function refused(why: string): ServiceError {
  return new ServiceError("CLIENT_CERTIFICATE_REFUSED", why);
}
