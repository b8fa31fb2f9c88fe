import assert from "node:assert/strict";
import { randomBytes } from "node:crypto";
import { test } from "node:test";
import { isServiceError } from "@unkey/base";
import { createLogger } from "@unkey/daemon";
import { openSqlite } from "@unkey/sql";
import { hostNetworkSkip } from "../test/support/skip-reasons.ts";
import { runCommand } from "./adapters/run-command.ts";
import { migrations } from "./adapters/schema.ts";
import { SqlVmStore } from "./adapters/sql-vm-store.ts";
import { hostTableName } from "./domain/network-rules.ts";
import { formatSubnet, parseSubnet } from "./domain/subnet.ts";
import { openNetworks } from "./open-instance.ts";

const log = createLogger({ write: () => undefined });

async function openStore(stack: AsyncDisposableStack) {
  return new SqlVmStore(stack.use(await openSqlite({ path: ":memory:", migrations })));
}

test("two instances on one host get different networks; one gets its own again; a network in use is refused", {
  skip: hostNetworkSkip(),
}, async () => {
  await using stack = new AsyncDisposableStack();
  // The same seed: both would like the same network.
  const base = randomBytes(2).toString("hex");
  const wish = async (instanceId: string) => ({
    instanceId,
    configured: undefined,
    resolvers: [],
    log,
    store: await openStore(stack),
  });
  const [one, two] = [await wish(`00${base}`), await wish(`40${base}`)];
  const first = await openNetworks(one);
  const second = stack.use(await openNetworks(two));
  assert.notEqual(formatSubnet(first.subnet), formatSubnet(second.subnet));
  const taken = { ...one, configured: second.subnet, store: await openStore(stack) };
  await assert.rejects(openNetworks(taken), (error) => isServiceError(error, "HOST_SUBNET_TAKEN"));
  const loopback = { ...taken, configured: parseSubnet("127.0.0.0/16", "x") };
  await assert.rejects(openNetworks(loopback), (error) => isServiceError(error, "HOST_SUBNET_TAKEN"));
  const table = hostTableName(first.subnet);
  const rules = await runCommand("nft", ["list", "table", "inet", table]);
  await runCommand("nft", ["delete", "table", "inet", table]); // as a firewall that reloads
  await first.refresh();
  assert.equal(await runCommand("nft", ["list", "table", "inet", table]), rules);
  await first[Symbol.asyncDispose]();
  const again = stack.use(await openNetworks(one));
  assert.equal(formatSubnet(again.subnet), formatSubnet(first.subnet));
});
