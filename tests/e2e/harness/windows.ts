import { join } from "node:path";
import { BillingService } from "@unkey/api/billing";
import type { UsageWindow } from "@unkey/api/metering";
import { newId, parseId } from "@unkey/base";
import { IdentitySource } from "@unkey/pki";
import { mintPrincipal, openRpcChannel, principalHeader } from "@unkey/rpc";

/** The windows behind a VM's usage, asked of the aggregator as gatewayd would ask. */
export async function listWindows(home: string, tenantId: string, vmId: string): Promise<UsageWindow[]> {
  using identity = IdentitySource.open(join(home, "pki/identities/gatewayd"));
  await using channel = openRpcChannel({
    peer: "billing-aggregator",
    address: { file: join(home, "run/billing-aggregator.addresses.json") },
    identity,
  });
  const principal = {
    tenantId: parseId("tenant", tenantId, "tenant_id"),
    subject: "test",
    roles: [],
    requestId: newId("req"),
  };
  const token = mintPrincipal({ identity: identity.current, principal, nowMs: Date.now() });
  const stream = channel
    .client(BillingService)
    .listUsageWindows({ tenantId, vmId }, { headers: { [principalHeader]: token } });
  const windows: UsageWindow[] = [];
  for await (const window of stream) windows.push(window);
  return windows;
}
