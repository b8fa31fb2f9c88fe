import { readFile } from "node:fs/promises";
import { parseAddress } from "../domain/subnet.ts";

// Where a local stub resolver is used, systemd-resolved keeps the servers behind it in the second file.
const files = ["/etc/resolv.conf", "/run/systemd/resolve/resolv.conf"];
const maxResolvers = 3;

/** IPv4 DNS servers of this host that a guest can reach too: none on a loopback address. */
export async function hostResolvers(paths: readonly string[] = files): Promise<string[]> {
  for (const path of paths) {
    const text = await readFile(path, "utf8").catch(() => "");
    const found = Array.from(text.matchAll(/^nameserver\s+(\S+)/gm), (match) => match[1] ?? "").filter(
      (address) => parseAddress(address) !== undefined && !address.startsWith("127."),
    );
    if (found.length > 0) return found.slice(0, maxResolvers);
  }
  return [];
}
