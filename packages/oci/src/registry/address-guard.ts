import { BlockList, isIPv6 } from "node:net";
import { getCACertificates } from "node:tls";
import { ServiceError } from "@unkey/base";
import { buildConnector } from "undici";

// No registry lives here, but services that trust whoever can reach them do: link-local addresses, among them the clouds'
// metadata services, and those that Azure, Alibaba and AWS have elsewhere.
const never = new BlockList();
never.addSubnet("169.254.0.0", 16);
never.addSubnet("fe80::", 10, "ipv6");
never.addAddress("168.63.129.16");
never.addAddress("100.100.100.200");
never.addAddress("fd00:ec2::254", "ipv6");

const loopback = new BlockList();
loopback.addSubnet("127.0.0.0", 8);
loopback.addSubnet("0.0.0.0", 8);
loopback.addAddress("::1", "ipv6");
loopback.addAddress("::", "ipv6");

/**
 * A connector that gives up a connection whose other end turns out to be a metadata service or, unless `allowsLoopback`, this
 * host. The address of the connection itself is judged: a name may resolve to something else the next time. Fails with
 * REGISTRY_ADDRESS_REFUSED before anything is asked.
 */
export function guardedConnector(options: {
  readonly timeoutMs: number;
  readonly allowsLoopback: boolean;
  /** PEM, trusted beside the system's. */
  readonly caCertificates: readonly string[];
}): buildConnector.connector {
  const { timeoutMs: timeout, caCertificates } = options;
  // A list given replaces the default one.
  const ca = caCertificates.length === 0 ? {} : { ca: [...getCACertificates("default"), ...caCertificates] };
  const connect = buildConnector({ timeout, allowH2: false, ...ca });
  return (target, done) => {
    connect(target, (error, socket) => {
      if (error !== null) return done(error, null);
      const address = socket.remoteAddress ?? "";
      if (!isDenied(address, options.allowsLoopback)) return done(null, socket);
      socket.destroy();
      done(new ServiceError("REGISTRY_ADDRESS_REFUSED", `${target.hostname} leads to ${address}`), null);
    });
  };
}

/** An address that cannot be told is denied. */
export function isDenied(address: string, allowsLoopback: boolean): boolean {
  const plain = embeddedIpv4(address) ?? address;
  if (plain === "") return true;
  const family = isIPv6(plain) ? "ipv6" : "ipv4";
  return never.check(plain, family) || (!allowsLoopback && loopback.check(plain, family));
}

/** The IPv4 address that an IPv6 one stands for: mapped (RFC 4291), or behind a NAT64 under its well-known prefix (RFC 6052). */
function embeddedIpv4(address: string): string | undefined {
  const [, dotted, high, low] =
    /^(?:::ffff:|64:ff9b::)(?:(\d+\.\d+\.\d+\.\d+)|([0-9a-f]{1,4}):([0-9a-f]{1,4}))$/i.exec(address) ?? [];
  if (high === undefined || low === undefined) return dotted;
  return [high, low]
    .map((group) => Number.parseInt(group, 16))
    .flatMap((value) => [value >> 8, value & 0xff])
    .join(".");
}
