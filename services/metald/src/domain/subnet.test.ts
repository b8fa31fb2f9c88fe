import assert from "node:assert/strict";
import { test } from "node:test";
import { isServiceError } from "@unkey/base";
import * as fc from "fast-check";
import { slotIdentity, slotInName } from "./slot-identity.ts";
import {
  candidateSubnets,
  firstSlot,
  formatAddress,
  formatSubnet,
  hostAddress,
  lastSlot,
  overlaps,
  parseAddress,
  parseSubnet,
  sizeOf,
} from "./subnet.ts";

test("addresses and networks survive being written and read", () => {
  fc.assert(
    fc.property(fc.nat(0xffff_ffff), fc.integer({ min: 16, max: 29 }), (address, prefix) => {
      assert.equal(parseAddress(formatAddress(address)), address);
      const size = 2 ** (32 - prefix);
      const subnet = { base: address - (address % size), prefix };
      assert.deepEqual(parseSubnet(formatSubnet(subnet), "subnet"), subnet);
    }),
  );
});

test("refuses what is no network that VMs fit in", () => {
  for (const text of [
    "",
    "10.0.0.0",
    "10.0.0.1/24",
    "10.0.0.0/30",
    "10.0.0.0/8",
    "10.0.0.256/24",
    "10.0.0.0/24/24",
    "a/24",
  ]) {
    assert.throws(
      () => parseSubnet(text, "subnet"),
      (error) => isServiceError(error, "INVALID_REQUEST"),
      text,
    );
  }
});

test("candidates start where the seed says, avoid what the host routes, and never overlap each other", () => {
  const taken = [parseSubnet("10.192.16.0/20", "x"), parseSubnet("10.200.3.0/24", "x")];
  const candidates = candidateSubnets(1023, taken);
  assert.equal(formatSubnet(candidates[0] ?? assert.fail()), "10.255.240.0/20");
  assert.equal(candidates.length, 1022);
  assert.equal(new Set(candidates.map((subnet) => subnet.base)).size, 1022);
  assert.ok(candidates.every((subnet) => !taken.some((other) => overlaps(subnet, other))));
});

test("every slot of a subnet has names, address, MAC and uid of its own, within the kernel's limits", () => {
  const instance = { id: "0123ab", subnet: parseSubnet("10.192.0.0/16", "x"), uidBase: 1_879_048_192 };
  const last = lastSlot(instance.subnet);
  assert.equal(last, sizeOf(instance.subnet) - 2);
  const uids = new Set<number>();
  for (let slot = firstSlot; slot <= last; slot += 97) {
    const identity = slotIdentity(instance, slot);
    assert.ok(identity.hostLink.length <= 15, identity.hostLink);
    assert.equal(slotInName("uk0123abv", identity.hostLink), slot);
    assert.equal(slotInName("unkey-0123ab-", identity.netns), slot);
    assert.notEqual(parseAddress(identity.guestAddress), hostAddress(instance.subnet));
    uids.add(identity.uid);
  }
  assert.equal(uids.size, Math.floor((last - firstSlot) / 97) + 1);
  assert.equal(slotInName("unkey-0123ab-", "unkey-0123ab-5-guest"), undefined);
});
