import { existsSync } from "node:fs";

/** Why tests that change the host's network cannot run here; false when they can. */
export function hostNetworkSkip(): string | false {
  if (process.getuid?.() !== 0) return "needs root";
  if (!existsSync("/dev/net/tun")) return "needs /dev/net/tun";
  const dirs = ["/usr/sbin", "/sbin", "/usr/bin", "/bin"];
  const missing = ["ip", "nft", "nsenter"].filter((program) => !dirs.some((dir) => existsSync(`${dir}/${program}`)));
  return missing.length > 0 && `needs ${missing.join(", ")}`;
}
