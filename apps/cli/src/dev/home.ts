import { mkdirSync, realpathSync } from "node:fs";
import { join } from "node:path";
import type { ProvenanceKeyFiles } from "@unkey/pki";

/** Where a platform on this host keeps what: one folder, UNKEY_HOME, open to its owner only. */
export interface Home {
  readonly root: string;
  readonly logDir: string;
  /** What only holds while the platform runs: addresses, status, lock. */
  readonly runDir: string;
  readonly compileCacheDir: string;
  readonly guestDir: string;
  /** The authority behind mutual TLS between the daemons. */
  readonly authorityDir: string;
  /** What builderd signs provenance with, and what hosts believe. */
  readonly provenance: ProvenanceKeyFiles;
  /** Where gatewayd puts the certificate of the authority behind the API's and the apps' addresses. */
  readonly publicCaFile: string;
  readonly statusFile: string;
  readonly portsFile: string;
  /** Held by the one supervisor of this home. */
  readonly lockFile: string;
  logFile(service: string): string;
  addressFile(service: string): string;
  identityDir(service: string): string;
  dataDir(service: string): string;
}

/** Makes the folder if it is missing. Links on the way to it are resolved, so that one folder has one name. */
export function openHome(path: string): Home {
  mkdirSync(path, { recursive: true, mode: 0o700 });
  const root = realpathSync(path);
  const folder = (name: string) => {
    const dir = join(root, name);
    mkdirSync(dir, { recursive: true, mode: 0o700 });
    return dir;
  };
  const runDir = folder("run");
  const logDir = folder("logs");
  return {
    root,
    logDir,
    runDir,
    compileCacheDir: folder("cache/compile"),
    guestDir: join(root, "guest"),
    authorityDir: join(root, "pki/internal"),
    provenance: {
      keyFile: join(root, "pki/provenance/signing.key"),
      trustedFile: join(root, "pki/provenance/trusted.pem"),
    },
    publicCaFile: join(root, "data/gatewayd/ingress-ca.crt"),
    statusFile: join(runDir, "status.json"),
    portsFile: join(runDir, "ports.json"),
    lockFile: join(runDir, "supervisor.lock"),
    logFile: (service) => join(logDir, `${service}.log`),
    addressFile: (service) => join(runDir, `${service}.addresses.json`),
    identityDir: (service) => join(root, "pki/identities", service),
    dataDir: (service) => join(root, "data", service),
  };
}
