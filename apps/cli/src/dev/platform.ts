import { Authority, ensureIdentity, ensureProvenanceKey } from "@unkey/pki";
import { platformDaemons, trustDomain } from "./daemon-environment.ts";
import type { PlatformSpec, TaskSpec } from "./daemon-spec.ts";
import type { Home } from "./home.ts";
import { keepProfile } from "./keep-profile.ts";
import { isMemoryOnly } from "./preflight.ts";

/** The platform of this repository: its six daemons, their authority and the guest's kernel. */
export function unkeyPlatform(home: Home, env: Readonly<Record<string, string | undefined>>): PlatformSpec {
  const daemons = platformDaemons(env);
  let authority: Authority | undefined;
  const renewIdentity = (service: string) => {
    authority ??= Authority.open(home.authorityDir, { commonName: "Unkey Deploy services" });
    ensureIdentity(authority, home.identityDir(service), { id: { trustDomain, service } });
  };
  return {
    daemons,
    tasks: [
      certificates(
        daemons.map(({ name }) => name),
        renewIdentity,
      ),
      provenanceKey(home),
      guest(home, isMemoryOnly(env)),
    ],
    renewIdentity,
    announce: (addressesOf) => keepProfile(home, addressesOf("gatewayd")["rpc"]),
  };
}

/** The operator's identity is what `unkey dev down` shows metald. */
function certificates(names: readonly string[], renew: (service: string) => void): TaskSpec {
  return {
    name: "certificates",
    run: async () => {
      for (const name of [...names, "operator"]) renew(name);
      return `of ${trustDomain}, renewed every 12 h`;
    },
  };
}

function provenanceKey(home: Home): TaskSpec {
  return {
    name: "provenance-key",
    run: async () => {
      ensureProvenanceKey(home.provenance);
      return "what builderd signs root filesystems with";
    },
  };
}

/** Kernel and initramfs of the guests, fetched and built at the first start. */
function guest(home: Home, memoryOnly: boolean): TaskSpec {
  return {
    name: "guest",
    run: async (report, signal) => {
      if (memoryOnly) return "not needed: VMs are only simulated";
      const { ensureGuestAssets } = await import("@unkey/guest");
      const { kernelVersion } = await ensureGuestAssets({ cacheDir: home.guestDir, log: report, signal });
      return `Linux ${kernelVersion}`;
    },
  };
}
