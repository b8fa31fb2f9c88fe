import { readdir, readFile, writeFile } from "node:fs/promises";
import {
  guestGateway,
  type HostRules,
  hostLinkCommands,
  hostRules,
  hostTableName,
  netnsCommands,
  ownerChainName,
  tapName,
  tapRules,
} from "../domain/network-rules.ts";
import { hostLinkPrefix, netnsPrefix, type SlotIdentity, slotInName } from "../domain/slot-identity.ts";
import { formatAddress, hostAddress, overlaps, parseAddress, type Subnet, sizeOf } from "../domain/subnet.ts";
import type { GuestNetworkSettings, Networks } from "../ports.ts";
import { CommandFailed, runCommand } from "./run-command.ts";

const netnsDir = "/run/netns";
const linksDir = "/sys/class/net";
const forwardingFile = "/proc/sys/net/ipv4/ip_forward";
/** Alias of a host link whose network is complete: readable without a process, gone with the link. */
const completeAlias = "unkey:complete";

/** Run inside a netns, whose forwarding setting starts as a copy of whichever namespace the kernel's own settings name. */
export const forwardAndFilter = `echo 1 > ${forwardingFile} && exec nft -f -`;

/**
 * Claims `rules.subnet` on this host by creating its nftables table, or refreshes the rules of a table that this instance
 * already owns. Yields false when another instance holds it.
 */
export async function claimSubnet(rules: HostRules): Promise<boolean> {
  if (await ownsTable(rules)) {
    await runCommand("nft", ["-f", "-"], { input: hostRules(rules, "refresh") });
    return true;
  }
  try {
    await runCommand("nft", ["-f", "-"], { input: hostRules(rules, "claim") });
    return true;
  } catch (error) {
    if (error instanceof CommandFailed && error.stderr.includes("File exists")) return false;
    throw error;
  }
}

/** Gives the subnet back. Call it only when no VM has a network left. */
export async function releaseSubnet(rules: HostRules): Promise<void> {
  if (await ownsTable(rules)) await runCommand("nft", ["delete", "table", "inet", hostTableName(rules.subnet)]);
}

async function ownsTable(rules: HostRules): Promise<boolean> {
  try {
    const table = hostTableName(rules.subnet);
    await runCommand("nft", ["list", "chain", "inet", table, ownerChainName(rules.instanceId)]);
    return true;
  } catch (error) {
    if (error instanceof CommandFailed && error.stderr.includes("No such file or directory")) return false;
    throw error;
  }
}

/** Networks that this host has a route to, apart from default routes; another subnet must not overlap them. */
export async function routedSubnets(): Promise<Subnet[]> {
  const json: unknown = JSON.parse((await runCommand("ip", ["-json", "-4", "route", "show", "table", "all"])) || "[]");
  if (!Array.isArray(json)) return [];
  const subnets: Subnet[] = [];
  for (const route of json as { dst?: unknown; type?: unknown }[]) {
    if (typeof route.dst !== "string") continue;
    const [address, prefixText = "32"] = route.dst.split("/");
    const ip = parseAddress(address ?? "");
    const prefix = Number(prefixText);
    if (ip === undefined || prefix === 0) continue;
    subnets.push({ base: ip - (ip % sizeOf({ base: ip, prefix })), prefix });
  }
  return subnets;
}

/** True when a route of the host other than `ours` overlaps `subnet`. */
export function isTaken(subnet: Subnet, routed: readonly Subnet[]): boolean {
  return routed.some((other) => overlaps(subnet, other));
}

/**
 * One netns per VM with a tap for the hypervisor, joined to the host by a routed veth pair. Addresses are /32 routes, so
 * there is no bridge and no broadcast domain that two VMs share. Slots are set up by three `ip`/`nft` processes.
 */
export class LinuxNetworks implements Networks {
  readonly active = true;
  readonly detail = "a netns, tap and routed link per VM, filtered by nftables";
  readonly guestSettings: GuestNetworkSettings;
  readonly #rules: HostRules;
  readonly #hostSideAddress: string;

  private constructor(rules: HostRules) {
    this.#rules = rules;
    this.guestSettings = { gateway: guestGateway, resolvers: rules.resolvers };
    this.#hostSideAddress = formatAddress(hostAddress(rules.subnet));
  }

  /** Turns forwarding on for the whole host and leaves it on: others may rely on it by the time this metald ends. */
  static async open(rules: HostRules): Promise<LinuxNetworks> {
    if ((await readFile(forwardingFile, "utf8")).trim() !== "1") await writeFile(forwardingFile, "1");
    return new LinuxNetworks(rules);
  }

  async ensure(identity: SlotIdentity): Promise<void> {
    if (await isComplete(identity)) return;
    await this.remove(identity);
    await runCommand("ip", ["-batch", "-"], { input: hostLinkCommands(identity, this.#hostSideAddress) });
    await runCommand("ip", ["-netns", identity.netns, "-batch", "-"], {
      input: netnsCommands(identity, this.#hostSideAddress),
    });
    const inside = [`--net=${netnsDir}/${identity.netns}`, "sh", "-c", forwardAndFilter];
    await runCommand("nsenter", inside, { input: tapRules(identity) });
    await writeFile(`${linksDir}/${identity.hostLink}/ifalias`, completeAlias);
  }

  attachment(identity: SlotIdentity): { readonly netns: string; readonly tap: string } {
    return { netns: identity.netns, tap: tapName };
  }

  async remove(identity: SlotIdentity): Promise<void> {
    const lines: string[] = [];
    // The link goes first and by name: the kernel destroys a netns later, on its own time.
    if ((await names(linksDir)).includes(identity.hostLink)) lines.push(`link delete ${identity.hostLink}`);
    if ((await names(netnsDir)).includes(identity.netns)) lines.push(`netns delete ${identity.netns}`);
    if (lines.length > 0) await runCommand("ip", ["-force", "-batch", "-"], { input: `${lines.join("\n")}\n` });
  }

  async processes(identity: SlotIdentity): Promise<number[]> {
    if (!(await names(netnsDir)).includes(identity.netns)) return [];
    const pids = await runCommand("ip", ["netns", "pids", identity.netns]);
    return pids
      .split("\n")
      .filter((line) => line !== "")
      .map(Number);
  }

  async present(): Promise<number[]> {
    const { instanceId } = this.#rules;
    const slots = [
      ...(await names(linksDir)).map((name) => slotInName(hostLinkPrefix(instanceId), name)),
      ...(await names(netnsDir)).map((name) => slotInName(netnsPrefix(instanceId), name)),
    ];
    return [...new Set(slots.filter((slot) => slot !== undefined))];
  }
}

async function isComplete(identity: SlotIdentity): Promise<boolean> {
  if (!(await names(netnsDir)).includes(identity.netns)) return false;
  try {
    const alias = await readFile(`${linksDir}/${identity.hostLink}/ifalias`, "utf8");
    return alias.trim() === completeAlias;
  } catch {
    return false;
  }
}

/** Names in a directory of the kernel's; none when it does not exist yet. */
async function names(directory: string): Promise<string[]> {
  try {
    return await readdir(directory);
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code === "ENOENT") return [];
    throw error;
  }
}
