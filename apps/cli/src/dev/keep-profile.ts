import { readFileSync, statSync } from "node:fs";
import { join } from "node:path";
import { type Profile, profilePath, readProfile, writeProfile } from "../connection/profile.ts";
import type { Home } from "./home.ts";

/**
 * Points the profile of this home at this home's platform. A key that the user chose with `unkey login` stays, unless
 * gatewayd has begun anew since; a profile of another platform is the user's own business.
 */
export function keepProfile(home: Home, apiAddress: string | undefined): void {
  const port = apiAddress?.split(":").at(-1);
  if (port === undefined) return;
  const known = readProfile(home.root);
  if (known !== undefined && known.caFile !== home.publicCaFile) return;
  const apiKey = chooseKey(home, known);
  if (apiKey === undefined) return;
  const profile = { url: `https://localhost:${port}`, apiKey, caFile: home.publicCaFile };
  if (known?.url !== profile.url || known.apiKey !== apiKey) writeProfile(home.root, profile);
}

/** gatewayd writes its first key to a file, once; a file younger than the profile is of a new beginning. */
function chooseKey(home: Home, known: Profile | undefined): string | undefined {
  const file = join(home.dataDir("gatewayd"), "bootstrap-key");
  const stat = statSync(file, { throwIfNoEntry: false });
  const isNewer =
    stat !== undefined && (known === undefined || stat.mtimeMs > statSync(profilePath(home.root)).mtimeMs);
  return isNewer ? readFileSync(file, "utf8").trim() : known?.apiKey;
}
