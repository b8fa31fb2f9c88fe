import { MetalService, type Vm } from "@unkey/api/metal";
import { IdentitySource } from "@unkey/pki";
import { openRpcChannel } from "@unkey/rpc";
import type { Home } from "./home.ts";

/** Asks metald, as the operator, to end all VMs of this host in order; `onVm` hears of each that has ended. */
export async function drainHost(home: Home, deleteVms: boolean, onVm: (vm: Vm) => void): Promise<void> {
  using identity = IdentitySource.open(home.identityDir("operator"), { service: "operator" });
  await using channel = openRpcChannel({ peer: "metald", address: { file: home.addressFile("metald") }, identity });
  for await (const vm of channel.client(MetalService).drainHost({ deleteVms })) onVm(vm);
}
