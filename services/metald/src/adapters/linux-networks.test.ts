import assert from "node:assert/strict";
import { createHash, randomBytes } from "node:crypto";
import { existsSync } from "node:fs";
import { after, before, test } from "node:test";
import { hostNetworkSkip } from "../../test/support/skip-reasons.ts";
import type { HostRules } from "../domain/network-rules.ts";
import { hostTableName } from "../domain/network-rules.ts";
import { type Instance, slotIdentity } from "../domain/slot-identity.ts";
import { candidateSubnets, firstSlot, formatSubnet } from "../domain/subnet.ts";
import { claimSubnet, isTaken, LinuxNetworks, releaseSubnet, routedSubnets } from "./linux-networks.ts";
import { runCommand } from "./run-command.ts";

const skip = hostNetworkSkip();

interface Bed {
  readonly instance: Instance;
  readonly rules: HostRules;
  readonly networks: LinuxNetworks;
}

async function openBed(): Promise<Bed> {
  const id = createHash("sha256").update(randomBytes(16)).digest("hex").slice(0, 6);
  for (const subnet of candidateSubnets(Number.parseInt(id, 16), await routedSubnets())) {
    const rules = { instanceId: id, subnet, resolvers: ["10.1.2.3"] };
    if (!(await claimSubnet(rules))) continue;
    return { instance: { id, subnet, uidBase: 1_879_048_192 }, rules, networks: await LinuxNetworks.open(rules) };
  }
  throw new Error("every subnet of the pool is taken");
}

let bed: Bed;

before(async () => {
  if (!skip) bed = await openBed();
});

after(async () => {
  if (skip) return;
  for (const slot of await bed.networks.present()) await bed.networks.remove(slotIdentity(bed.instance, slot));
  await releaseSubnet(bed.rules);
  await assert.rejects(runCommand("nft", ["list", "table", "inet", hostTableName(bed.rules.subnet)]));
});

test("one of two instances that want the same subnet gets it, and keeps it over a restart", { skip }, async () => {
  assert.equal(await claimSubnet({ ...bed.rules, instanceId: "ffffff" }), false);
  assert.equal(await claimSubnet(bed.rules), true);
});

test("a routed network counts as taken", { skip }, async () => {
  const slot = slotIdentity(bed.instance, firstSlot);
  await bed.networks.ensure(slot);
  assert.equal(isTaken(bed.instance.subnet, await routedSubnets()), true, formatSubnet(bed.instance.subnet));
  await bed.networks.remove(slot);
});

test("sets up, repeats, completes what a crash left half, and removes everything", { skip }, async () => {
  const slot = slotIdentity(bed.instance, 7);
  await bed.networks.ensure(slot);
  await bed.networks.ensure(slot);
  assert.deepEqual(await bed.networks.present(), [7]);
  // Losing the inside of the netns is what a crash in the middle looks like.
  await runCommand("ip", ["-netns", slot.netns, "link", "delete", "tap0"]);
  await runCommand("ip", ["link", "set", slot.hostLink, "alias", "unkey:half"]);
  await bed.networks.ensure(slot);
  const taps = await runCommand("ip", ["-netns", slot.netns, "-json", "tuntap", "show"]);
  assert.match(taps, new RegExp(`"ifname":"tap0".*"user":${slot.uid}`));
  await bed.networks.remove(slot);
  await bed.networks.remove(slot);
  assert.deepEqual(await bed.networks.present(), []);
  assert.equal(existsSync(`/run/netns/${slot.netns}`), false);
  assert.equal(existsSync(`/sys/class/net/${slot.hostLink}`), false);
});
