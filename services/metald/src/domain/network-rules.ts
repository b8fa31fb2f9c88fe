import { anyHostLinkPattern, hostLinkPrefix, type SlotIdentity } from "./slot-identity.ts";
import { formatSubnet, type Subnet } from "./subnet.ts";

/** The gateway that every guest sees. Link-local and the same in each netns, so it needs no address of the subnet. */
export const guestGateway = "169.254.0.1";
export const tapName = "tap0";
/** The netns end of the link to the host. */
const uplinkName = "up0";

// What a VM may never open a connection to: special-purpose and private networks (RFC 6890), the cloud's metadata
// service at 169.254.169.254 among them, and Azure's, which gives the host's secrets away at an address that looks public
// (https://learn.microsoft.com/azure/virtual-network/what-is-ip-address-168-63-129-16). Other public addresses stay reachable.
const deniedNetworks = [
  "0.0.0.0/8",
  "10.0.0.0/8",
  "100.64.0.0/10",
  "127.0.0.0/8",
  "168.63.129.16",
  "169.254.0.0/16",
  "172.16.0.0/12",
  "192.0.0.0/24",
  "192.168.0.0/16",
  "198.18.0.0/15",
  "224.0.0.0/3",
];

/** Connections that the host tracks for one VM at once: its table is shared, and a VM that fills it would cut off all others. */
const maxConnections = 8192;

/** The nftables table that holds an instance's rules; creating it is what claims the subnet. */
export function hostTableName(subnet: Subnet): string {
  return `unkey_${formatSubnet(subnet).replaceAll(/[./]/g, "_")}`;
}

/** A chain without rules whose name says which instance the table belongs to. */
export function ownerChainName(instanceId: string): string {
  return `owner_${instanceId}`;
}

export interface HostRules {
  readonly instanceId: string;
  readonly subnet: Subnet;
  /** Resolvers that guests may ask although they live in a denied network. */
  readonly resolvers: readonly string[];
}

/**
 * Rules of one instance for `nft -f`, one transaction. They name no VM: links are matched by name prefix and addresses by
 * the host's routes, so they are loaded once. `claim` fails when the table exists, `refresh` replaces its rules.
 */
export function hostRules(rules: HostRules, mode: "claim" | "refresh"): string {
  const table = hostTableName(rules.subnet);
  const links = `"${hostLinkPrefix(rules.instanceId)}*"`;
  const resolvers = rules.resolvers.length > 0 ? `ip daddr { ${rules.resolvers.join(", ")} } ` : undefined;
  const toResolver = `${resolvers}meta l4proto { tcp, udp } th dport 53`;
  const askResolver = resolvers ? [`${toResolver} jump counted`, `${toResolver} accept`] : [];
  // An address is a VM's own exactly if the host routes it to the link that the packet came from.
  const ownAddressOnly = ["meta nfproto != ipv4 drop", "fib saddr . iif oif missing drop"];
  const chains: Record<string, readonly string[]> = {
    [ownerChainName(rules.instanceId)]: [],
    forward: [
      "type filter hook forward priority filter; policy accept;",
      `iifname ${links} jump from_vm`,
      `oifname ${links} jump to_vm`,
    ],
    from_vm: [
      ...ownAddressOnly,
      `oifname "${anyHostLinkPattern}" drop`,
      "ct state established,related accept",
      ...askResolver,
      `ip daddr { ${deniedNetworks.join(", ")} } drop`,
      "jump counted",
      "tcp flags syn tcp option maxseg size set rt mtu",
    ],
    counted: [`ct state new add @connections { ip saddr ct count over ${maxConnections} } drop`],
    to_vm: ["ct state established,related accept", "drop"],
    input: ["type filter hook input priority filter; policy accept;", `iifname ${links} jump to_host`],
    to_host: [...ownAddressOnly, "ct state established,related accept", ...askResolver, "drop"],
    postrouting: [
      "type nat hook postrouting priority srcnat; policy accept;",
      `ip saddr ${formatSubnet(rules.subnet)} oifname != "${anyHostLinkPattern}" masquerade`,
    ],
  };
  const body = Object.entries(chains).map(([name, lines]) => `  chain ${name} {\n${indent(lines)}  }\n`);
  // Deleting and adding in one transaction leaves no moment without rules; `add` first keeps `delete` from failing.
  const start = mode === "claim" ? `create table inet ${table}` : `add table inet ${table}\ndelete table inet ${table}`;
  const set = "  set connections { type ipv4_addr; size 65535; flags dynamic; }\n";
  return `${start}\ntable inet ${table} {\n${set}${body.join("")}}\n`;
}

function indent(lines: readonly string[]): string {
  return lines.map((line) => `    ${line}\n`).join("");
}

/** Rules inside a VM's netns: frames that do not carry the VM's own MAC and address die at the tap. */
export function tapRules(identity: SlotIdentity): string {
  return `table netdev guard {
  chain from_guest {
    type filter hook ingress device "${tapName}" priority filter; policy drop;
    ether saddr != ${identity.guestMac} drop
    ether type arp arp saddr ether ${identity.guestMac} arp saddr ip ${identity.guestAddress} accept
    ether type ip ip saddr ${identity.guestAddress} accept
  }
}
`;
}

/** `ip -batch` lines for the host's side of a VM's network. Neighbours are fixed on each side: nobody answers for another. */
export function hostLinkCommands(identity: SlotIdentity, hostSideAddress: string): string {
  const { netns, hostLink, guestAddress } = identity;
  return [
    `netns add ${netns}`,
    `link add ${hostLink} address ${identity.hostLinkMac} type veth peer name ${uplinkName} address ${identity.netnsLinkMac} netns ${netns}`,
    `link set ${hostLink} addrgenmode none`,
    `address add ${hostSideAddress}/32 dev ${hostLink}`,
    `link set ${hostLink} up`,
    `neigh add ${guestAddress} lladdr ${identity.netnsLinkMac} dev ${hostLink} nud permanent`,
    `route add ${guestAddress}/32 dev ${hostLink} src ${hostSideAddress}`,
    "",
  ].join("\n");
}

/** `ip -n <netns> -batch` lines for the inside of a VM's netns. */
export function netnsCommands(identity: SlotIdentity, hostSideAddress: string): string {
  const { guestAddress, uid } = identity;
  return [
    `tuntap add dev ${tapName} mode tap user ${uid} group ${uid}`,
    `link set ${tapName} address ${identity.tapMac} addrgenmode none`,
    `link set ${uplinkName} addrgenmode none`,
    `address add ${guestGateway}/32 dev ${tapName}`,
    `link set ${tapName} up`,
    `link set ${uplinkName} up`,
    `neigh add ${guestAddress} lladdr ${identity.guestMac} dev ${tapName} nud permanent`,
    `neigh add ${hostSideAddress} lladdr ${identity.hostLinkMac} dev ${uplinkName} nud permanent`,
    `route add ${guestAddress}/32 dev ${tapName}`,
    `route add ${hostSideAddress}/32 dev ${uplinkName}`,
    `route add default via ${hostSideAddress} dev ${uplinkName}`,
    "",
  ].join("\n");
}
