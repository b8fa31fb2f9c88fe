import { readFile } from "node:fs/promises";
import { isIPv6 } from "node:net";
import { ServiceError } from "@unkey/base";
import { type Address, parseAddress } from "@unkey/daemon";

/** Yields where a peer listens now; asked again for each new connection. */
export type AddressResolver = () => Promise<{ readonly host: string; readonly port: number }>;

/** Follows a setting: a fixed address, or the `rpc` entry of the file in which a daemon writes its addresses. */
export function resolverOf(address: Address, peer: string): AddressResolver {
  if (!("file" in address)) return () => Promise.resolve(address);
  return async () => {
    try {
      const content = JSON.parse(await readFile(address.file, "utf8")) as { addresses?: { rpc?: string } };
      const parsed = parseAddress(content.addresses?.rpc ?? "");
      if (!("file" in parsed)) return parsed;
    } catch (cause) {
      throw new ServiceError("DEPENDENCY_UNAVAILABLE", `${peer} is not running: it has written no address`, { cause });
    }
    throw new ServiceError("DEPENDENCY_UNAVAILABLE", `${peer} has written no address`);
  };
}

export function originOf({ host, port }: { readonly host: string; readonly port: number }): string {
  return `https://${isIPv6(host) ? `[${host}]` : host}:${port}`;
}
