import { isIP, isIPv6 } from "node:net";
import { ServiceError } from "@unkey/base";
import { writeTar } from "./tar.ts";

/** Text, or bytes where an image's text is not UTF-8. */
export type Bytes = string | Uint8Array;

export interface GuestNetwork {
  /** With prefix length: "10.0.0.2/30", "fd00::2/64". */
  readonly addresses: readonly string[];
  readonly gateways: readonly string[];
  readonly dnsServers: readonly string[];
  readonly searchDomains?: readonly string[];
  readonly mtu?: number;
}

export interface GuestApp {
  /** Program and arguments, never empty; a program without a slash is looked for in PATH of `env`. */
  readonly argv: readonly Bytes[];
  /** Names are anything without "=" and NUL. HOME, HOSTNAME and PATH get a container's defaults when absent. */
  readonly env: readonly (readonly [name: string, value: Bytes])[];
  readonly workingDir: string;
  readonly user: { readonly uid: number; readonly gid: number; readonly supplementaryGids?: readonly number[] };
  /** Number of the signal that asks the app to end; 15 (SIGTERM) where the image names none. */
  readonly stopSignal: number;
}

export interface GuestSpec {
  readonly hostname: string;
  /** Absent: loopback only. */
  readonly network?: GuestNetwork;
  /** Further lines of /etc/hosts. */
  readonly hosts?: readonly { readonly address: string; readonly names: readonly string[] }[];
  readonly app: GuestApp;
}

/** Linux refuses a longer single argument or variable (MAX_ARG_STRLEN, execve(2)), its terminating zero included. */
const maxArgumentBytes = 131_071;
/** All arguments and variables together; Linux allows a quarter of the 8 MiB stack, pointers included. */
const maxTotalBytes = 1_048_576;
const maxListLength = 4096;
const maxId = 2 ** 32 - 2;
const maxSupplementaryGroups = 64;
const configAlignmentBytes = 4096;
const defaultPath = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/**
 * The content of a guest's config drive: a tar archive of settings that the guest's init reads. The length is a multiple of
 * 4 KiB. It holds the app's environment, so the file belongs to the VM's user alone. Throws GUEST_CONFIG_INVALID.
 */
export function renderGuestConfig(spec: GuestSpec): Uint8Array {
  checkNames(spec);
  checkApp(spec.app);
  const { uid, gid, supplementaryGids = [] } = spec.app.user;
  const { addresses = [], gateways = [], dnsServers = [], searchDomains = [], mtu } = spec.network ?? {};
  const settings = {
    hostname: spec.hostname,
    addresses: addresses.join(" "),
    gateways: gateways.join(" "),
    mtu: mtu === undefined ? "" : String(mtu),
    uid: String(uid),
    gid: String(gid),
    stop_signal: String(spec.app.stopSignal),
  };
  const groups = [...new Set([gid, ...supplementaryGids])];
  const tar = writeTar(
    new Map([
      ["settings", lines(Object.entries(settings).map(([name, value]) => `${name}='${value}'`))],
      ["app", renderApp(spec)],
      ["passwd", lines([`app:x:0:${gid}::/:/`])],
      ["group", lines(groups.map((group) => `g${group}:x:${group}:app`))],
      ["hostname", lines([spec.hostname])],
      ["hosts", lines(renderHosts(spec))],
      [
        "resolv.conf",
        lines([
          ...(searchDomains.length > 0 ? [`search ${searchDomains.join(" ")}`] : []),
          ...dnsServers.map((server) => `nameserver ${server}`),
        ]),
      ],
    ]),
  );
  return Buffer.concat([
    tar,
    Buffer.alloc((configAlignmentBytes - (tar.length % configAlignmentBytes)) % configAlignmentBytes),
  ]);
}

/** The part of the launch that only this app has: words that a POSIX shell reads back exactly. */
function renderApp({ hostname, app }: GuestSpec): Buffer {
  const env = new Map<string, Bytes>([["PATH", defaultPath], ["HOSTNAME", hostname], ...app.env]);
  const [program = "", ...args] = app.argv;
  const path = env.get("PATH") ?? defaultPath;
  const home = app.env.some(([name]) => name === "HOME") ? [] : [Buffer.from('"HOME=$home"')];
  const words = [
    Buffer.from("\texec $busybox nsenter -F -S $uid -- $busybox env -i --"),
    ...home,
    ...[...env].map(([name, value]) => quote(Buffer.concat([Buffer.from(`${name}=`), toBuffer(value)]))),
    Buffer.from("$busybox start-stop-daemon -S -p /proc/self/none -a"),
    quote(program),
    Buffer.from('-x "$program" --'),
    ...args.map(quote),
  ];
  return Buffer.concat([
    ...assign("working_dir", app.workingDir),
    ...assign("program", program),
    ...assign("search_path", path),
    Buffer.from("exec_app() {\n"),
    ...words.flatMap((word, index) => (index === 0 ? [word] : [Buffer.from(" "), word])),
    Buffer.from("\n}\n"),
  ]);
}

function renderHosts({ hostname, network, hosts = [] }: GuestSpec): string[] {
  const ownAddress = network?.addresses[0]?.split("/")[0] ?? "127.0.1.1";
  return [
    "127.0.0.1 localhost",
    "::1 localhost ip6-localhost ip6-loopback",
    `${ownAddress} ${hostname}`,
    ...hosts.map(({ address, names }) => `${address} ${names.join(" ")}`),
  ];
}

function checkNames({ hostname, network, hosts = [] }: GuestSpec): void {
  checkHostname("hostname", hostname);
  if (hostname.length > 64) invalid("hostname: Linux allows 64 characters");
  checkListLength("hosts", hosts);
  for (const { address, names } of hosts) {
    checkAddress("hosts", address);
    checkListLength("hosts.names", names);
    if (names.length === 0) invalid("hosts: an entry names no host");
    for (const name of names) checkHostname("hosts", name);
  }
  if (network === undefined) return;
  const { addresses, gateways, dnsServers, searchDomains = [], mtu } = network;
  for (const [field, list] of Object.entries({ addresses, gateways, dnsServers, searchDomains })) {
    if (list.length > 16) invalid(`network.${field}: at most 16 entries`);
  }
  if (addresses.length === 0) invalid("network.addresses: at least one is needed");
  for (const address of addresses) {
    const [ip = "", prefix = "", ...rest] = address.split("/");
    const maxPrefix = isIPv6(ip) ? 128 : 32;
    if (isIP(ip) === 0 || rest.length > 0 || !/^\d{1,3}$/.test(prefix) || Number(prefix) > maxPrefix) {
      invalid(`network.addresses: ${JSON.stringify(address)} is not an address with a prefix length`);
    }
  }
  for (const gateway of gateways) checkAddress("network.gateways", gateway);
  for (const server of dnsServers) checkAddress("network.dnsServers", server);
  for (const domain of searchDomains) checkHostname("network.searchDomains", domain);
  if (mtu !== undefined && !isIntegerIn(mtu, 68, 65_535)) invalid(`network.mtu: ${mtu} is not in 68–65535`);
}

function checkApp({ argv, env, workingDir, user, stopSignal }: GuestApp): void {
  checkListLength("app.argv", argv);
  checkListLength("app.env", env);
  if (argv[0] === undefined || argv[0].length === 0) invalid("app.argv: there is no program");
  let totalBytes = 0;
  for (const [index, argument] of argv.entries()) totalBytes += checkText(`app.argv[${index}]`, toBuffer(argument));
  for (const [name, value] of env) {
    // The value may be a secret: it never shows in a message.
    if (name === "" || name.includes("=")) invalid(`app.env: ${JSON.stringify(name)} is not a name of a variable`);
    totalBytes += checkText(
      `app.env ${JSON.stringify(name)}`,
      Buffer.concat([Buffer.from(`${name}=`), toBuffer(value)]),
    );
  }
  if (totalBytes > maxTotalBytes) {
    invalid(`app: arguments and environment have ${totalBytes} bytes; at most ${maxTotalBytes} fit`);
  }
  if (!workingDir.startsWith("/")) invalid(`app.workingDir: ${JSON.stringify(workingDir)} is not an absolute path`);
  if (checkText("app.workingDir", Buffer.from(workingDir)) > 4096) invalid("app.workingDir: at most 4095 bytes");
  const gids = user.supplementaryGids ?? [];
  if (gids.length > maxSupplementaryGroups) invalid(`app.user: at most ${maxSupplementaryGroups} supplementary groups`);
  for (const id of [user.uid, user.gid, ...gids]) {
    if (!isIntegerIn(id, 0, maxId)) invalid(`app.user: ${id} is not a user or group id`);
  }
  if (!isIntegerIn(stopSignal, 1, 64)) invalid(`app.stopSignal: ${stopSignal} is not a signal's number`);
}

/** Checks one string that goes through execve(2) and returns its size there. */
function checkText(field: string, text: Buffer): number {
  if (text.includes(0)) invalid(`${field}: contains a NUL byte`);
  if (text.length > maxArgumentBytes) {
    invalid(`${field}: has ${text.length} bytes; Linux allows ${maxArgumentBytes} (with the name and "=")`);
  }
  return text.length + 1;
}

function checkListLength(field: string, list: readonly unknown[]): void {
  if (list.length > maxListLength) invalid(`${field}: at most ${maxListLength} entries`);
}

function checkAddress(field: string, address: string): void {
  // isIP accepts a zone ("fe80::1%eth0"), which means nothing in the guest.
  if (isIP(address) === 0 || address.includes("%"))
    invalid(`${field}: ${JSON.stringify(address)} is not an IP address`);
}

function checkHostname(field: string, name: string): void {
  const label = /^[A-Za-z0-9_]([A-Za-z0-9_-]{0,61}[A-Za-z0-9_])?$/;
  if (name.length > 253 || !name.split(".").every((part) => label.test(part))) {
    invalid(`${field}: ${JSON.stringify(name.slice(0, 64))} is not a host name`);
  }
}

function isIntegerIn(value: number, min: number, max: number): boolean {
  return Number.isInteger(value) && value >= min && value <= max;
}

function toBuffer(text: Bytes): Buffer {
  return Buffer.from(typeof text === "string" ? Buffer.from(text) : text);
}

/** A word in single quotes, in which a shell reads every byte as itself; a quote is written as '\''. */
function quote(text: Bytes): Buffer {
  const quoted = toBuffer(text).toString("latin1").replaceAll("'", String.raw`'\''`);
  return Buffer.from(`'${quoted}'`, "latin1");
}

function assign(name: string, value: Bytes): Buffer[] {
  return [Buffer.from(`${name}=`), quote(value), Buffer.from("\n")];
}

function lines(texts: readonly string[]): Buffer {
  return Buffer.from(texts.map((text) => `${text}\n`).join(""));
}

function invalid(message: string): never {
  throw new ServiceError("GUEST_CONFIG_INVALID", message);
}
