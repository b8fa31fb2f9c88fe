import { createHash } from "node:crypto";
import { realpath } from "node:fs/promises";
import { ServiceError } from "@unkey/base";
import type { Logger } from "@unkey/daemon";
import { claimSubnet, isTaken, LinuxNetworks, releaseSubnet, routedSubnets } from "./adapters/linux-networks.ts";
import type { HostRules } from "./domain/network-rules.ts";
import { candidateSubnets, formatSubnet, lastSlot, parseSubnet, type Subnet } from "./domain/subnet.ts";
import type { VmStore } from "./ports.ts";

const subnetFact = "subnet";

/** Six hexadecimal digits that follow from the data directory: the same at each start, another's on the same host differ. */
export async function instanceIdOf(dataDir: string): Promise<string> {
  return createHash("sha256")
    .update(await realpath(dataDir))
    .digest("hex")
    .slice(0, 6);
}

export interface SubnetWish {
  readonly instanceId: string;
  readonly configured: Subnet | undefined;
  readonly resolvers: readonly string[];
  readonly store: VmStore;
  readonly log: Logger;
}

export interface OpenNetworks extends AsyncDisposable {
  readonly subnet: Subnet;
  readonly networks: LinuxNetworks;
  /** Loads the rules anew: a firewall that reloads may have taken them away, and VMs that run need them. */
  refresh(): Promise<void>;
}

/**
 * Claims the addresses of this instance's VMs: the network that is configured, or the one that it had before, or a free
 * /20. VMs that are stopped move with it; ones that run hold it. Throws HOST_SUBNET_TAKEN.
 */
export async function openNetworks(wish: SubnetWish): Promise<OpenNetworks> {
  const { instanceId, configured, resolvers, store, log } = wish;
  const known = await store.fact(subnetFact);
  const before = known === undefined ? undefined : parseSubnet(known, subnetFact);
  const highestSlot = await store.highestSlot();
  if (configured && before && formatSubnet(configured) !== known && highestSlot > 0) {
    const message = `UNKEY_METALD_SUBNET is ${formatSubnet(configured)} while VMs with addresses of ${known} exist; delete them first`;
    throw new ServiceError("HOST_SUBNET_TAKEN", message);
  }
  const rulesOf = (subnet: Subnet): HostRules => ({ instanceId, subnet, resolvers });
  const routed = await routedSubnets();
  const seed = Number.parseInt(instanceId, 16);
  const free = configured
    ? [configured]
    : candidateSubnets(seed, routed).filter((subnet) => lastSlot(subnet) >= highestSlot);
  const isOurs = (subnet: Subnet) => before !== undefined && formatSubnet(before) === formatSubnet(subnet);
  for (const subnet of before && !configured ? [before, ...free] : free) {
    // What this instance held before may well be routed: to its own VMs.
    if (!isOurs(subnet) && isTaken(subnet, routed)) continue;
    const rules = rulesOf(subnet);
    if (!(await claimSubnet(rules))) continue;
    await store.setFact(subnetFact, formatSubnet(subnet));
    log.info("subnet claimed", { subnet: formatSubnet(subnet), instance: instanceId });
    const networks = await LinuxNetworks.open(rules);
    return {
      subnet,
      networks,
      refresh: async () => {
        if (!(await claimSubnet(rules)))
          log.error("another instance has taken the subnet", { subnet: formatSubnet(subnet) });
      },
      [Symbol.asyncDispose]: async () => {
        // VMs that live on need their rules.
        if ((await networks.present()).length === 0) await releaseSubnet(rules);
      },
    };
  }
  const wanted = configured ? `${formatSubnet(configured)} is` : "all networks to choose from are";
  throw new ServiceError("HOST_SUBNET_TAKEN", `${wanted} in use on this host`);
}
