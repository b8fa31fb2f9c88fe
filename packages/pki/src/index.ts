export { Authority, type AuthorityOptions } from "./authority.ts";
export type { KeyAndCertificate, SubjectNames } from "./certificate.ts";
export { HostCertificates, type HostCertificatesOptions } from "./host-certificates.ts";
export { ensureIdentity, type Identity, type IdentityOptions, type IdentityRequest, loadIdentity } from "./identity.ts";
export { IdentitySource, type IdentitySourceOptions } from "./identity-source.ts";
export { ensureProvenanceKey, type ProvenanceKeyFiles } from "./provenance-key.ts";
export { formatSpiffeId, parseSpiffeId, type SpiffeId, spiffeIdOf, spiffeIdOfNames } from "./spiffe.ts";
