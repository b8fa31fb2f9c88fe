import { fromBinary } from "@bufbuild/protobuf";
import { VmSpecSchema } from "@unkey/api/metal";
import { ServiceError } from "@unkey/base";
import { renderGuestConfig } from "@unkey/guest";
import { signalNumber } from "./domain/signals.ts";
import type { Vm } from "./domain/vm.ts";
import type { GuestNetworkSettings } from "./ports.ts";

/** The content of a VM's config drive. Throws INVALID_REQUEST or GUEST_CONFIG_INVALID. */
export function guestConfigOf(
  vm: Pick<Vm, "id" | "spec">,
  network: GuestNetworkSettings & { readonly address: string },
): Uint8Array {
  const { process, hostname } = fromBinary(VmSpecSchema, vm.spec);
  if (!process) throw new ServiceError("INVALID_REQUEST", "spec.process: is missing");
  return renderGuestConfig({
    hostname: hostname || vm.id.replace("_", "-"),
    network: { addresses: [`${network.address}/32`], gateways: [network.gateway], dnsServers: network.resolvers },
    app: {
      argv: process.argv,
      env: process.env.map(({ name, value }) => [name, value] as const),
      workingDir: process.workingDir || "/",
      user: { uid: process.uid, gid: process.gid, supplementaryGids: process.groups },
      stopSignal: stopSignalOf(process.stopSignal),
    },
  });
}

function stopSignalOf(text: string): number {
  const number = signalNumber(text === "" ? "SIGTERM" : text);
  if (number === undefined) {
    throw new ServiceError("INVALID_REQUEST", `spec.process.stop_signal: "${text.slice(0, 32)}" is no signal`);
  }
  return number;
}
