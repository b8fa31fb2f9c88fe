import { randomBytes } from "node:crypto";
import { chmod, readFile, rm } from "node:fs/promises";
import { join } from "node:path";
import { type Clock, newId } from "@unkey/base";
import { type Logger, writeFileAtomic } from "@unkey/daemon";
import { newKey } from "./service/keys.ts";
import type { KeyStore } from "./store/key-store.ts";

/**
 * Makes the first tenant with its first key when there is none, and writes the secret once to `bootstrap-key` in the
 * data directory (mode 0600). The file comes first: a crash in between costs a file, never the only key.
 */
export async function ensureBootstrapKey(store: KeyStore, dataDir: string, clock: Clock, log: Logger): Promise<void> {
  if (!(await store.isEmpty())) return;
  const nowMs = clock.nowMs();
  const file = join(dataDir, "bootstrap-key");
  const tenantId = newId("tenant", nowMs);
  const { key, secret, digest } = newKey(
    { tenantId, name: "bootstrap", scopes: ["*"], expiresAtMs: 0, nowMs },
    randomBytes,
  );
  await writeFileAtomic(file, `${secret}\n`);
  if (await store.bootstrap(key, digest)) {
    log.info("the first API key was written", { file, apiKeyId: key.apiKeyId, tenantId });
  } else {
    await rm(file, { force: true }); // another replica was faster: its key is the one that works
  }
}

/** This replica's name for its leases: made once, the same after every restart. */
export async function replicaName(dataDir: string): Promise<string> {
  const file = join(dataDir, "replica-id");
  const known = await readFile(file, "utf8").catch(() => "");
  if (/^[0-9a-f]{16}$/.test(known.trim())) return known.trim();
  const name = randomBytes(8).toString("hex");
  await writeFileAtomic(file, `${name}\n`);
  return name;
}

/** Writes the authority's certificate, which is public, for whoever has to trust it. */
export async function publishCertificate(file: string, pem: string): Promise<void> {
  if ((await readFile(file, "utf8").catch(() => "")) === pem) return;
  await writeFileAtomic(file, pem);
  await chmod(file, 0o644);
}
