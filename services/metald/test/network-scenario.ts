// Runs inside a netns that plays the host, started by network-isolation.test.ts; prints one JSON object of outcomes.
import { spawn } from "node:child_process";
import { once } from "node:events";
import { readFile } from "node:fs/promises";
import { createServer } from "node:net";
import { claimSubnet, forwardAndFilter, LinuxNetworks } from "../src/adapters/linux-networks.ts";
import { runCommand } from "../src/adapters/run-command.ts";
import { hostLinkCommands, netnsCommands, tapRules } from "../src/domain/network-rules.ts";
import { type SlotIdentity, slotIdentity } from "../src/domain/slot-identity.ts";
import { parseSubnet } from "../src/domain/subnet.ts";

const [, , id = "", outside = ""] = process.argv;
const subnet = parseSubnet("10.200.0.0/24", "subnet");
const hostSide = "10.200.0.1";
const resolver = "192.168.77.53";
const internet = "198.51.100.7";
const port = 8080;

const inNetns = (netns: string, args: readonly string[], input = "") =>
  runCommand("nsenter", [`--net=/run/netns/${netns}`, ...args], { input });

const echo = `require("net").createServer((s) => { s.on("error", () => {}); s.end(s.remoteAddress ?? ""); }).listen(PORT, () => console.log("up"))`;
const listeners: ReturnType<typeof spawn>[] = [];

/** Answers each connection with the address that it came from. */
async function serve(netns: string, at: number): Promise<void> {
  const child = spawn("nsenter", [`--net=/run/netns/${netns}`, process.execPath, "-e", echo.replace("PORT", `${at}`)], {
    stdio: ["ignore", "pipe", "inherit"],
  });
  listeners.push(child);
  await once(child.stdout, "data");
}

const dial = `const s = require("net").connect({ host: "HOST", port: PORT });
s.setTimeout(700, () => { console.log("timeout"); process.exit(0); });
s.on("error", (e) => console.log(e.code)); s.on("data", (d) => console.log("from " + d)); s.on("end", () => process.exit(0));`;

async function connect(netns: string, host: string, at = port): Promise<string> {
  const script = dial.replace("HOST", host).replace("PORT", `${at}`);
  return (await inNetns(netns, [process.execPath, "-e", script])).trim();
}

const sink = `const s = require("dgram").createSocket("udp4"); const seen = [];
s.on("message", (m) => { if (seen.push(String(m)) && String(m) === "end") { console.log(seen.join()); process.exit(0); } });
s.bind(PORT, () => console.log("up"))`;
const send = `const s = require("dgram").createSocket("udp4");
s.bind(0, "FROM", () => s.send("WORD", PORT, "HOST", () => s.close()))`;

const flood = `const s = require("dgram").createSocket("udp4");
const next = (port) => (port < 42000 ? s.send("x", port, "HOST", () => next(port + 1)) : s.close());
s.on("error", () => {}); s.bind(0, "FROM", () => next(30000))`;

/** Datagrams go one way, so a forged source shows in what arrives: each sender's word, up to "end". */
async function collect(netns: string): Promise<{ seen: Promise<string> }> {
  const args = [`--net=/run/netns/${netns}`, process.execPath, "-e", sink.replace("PORT", `${port}`)];
  const child = spawn("nsenter", args, { stdio: ["ignore", "pipe", "inherit"] });
  listeners.push(child);
  await once(child.stdout, "data");
  return { seen: once(child.stdout, "data").then(([chunk]) => String(chunk).trim()) };
}

async function say(netns: string, word: string, from: string): Promise<void> {
  const script = send.replace("FROM", from).replace("WORD", word).replace("PORT", `${port}`).replace("HOST", internet);
  await inNetns(netns, [process.execPath, "-e", script]);
}

/** The slot's network as LinuxNetworks makes it, with a link to a netns in place of the tap, since no VMM runs here. */
async function guest(identity: SlotIdentity): Promise<string> {
  const netns = `${identity.netns}-guest`;
  const link = `link add tap0 type veth peer name eth0 address ${identity.guestMac} netns ${netns}`;
  const inside = netnsCommands(identity, hostSide).replace(/^tuntap add.*$/m, link);
  await runCommand("ip", ["netns", "add", netns]);
  await runCommand("ip", ["-batch", "-"], { input: hostLinkCommands(identity, hostSide) });
  await runCommand("ip", ["-netns", identity.netns, "-batch", "-"], { input: inside });
  await inNetns(identity.netns, ["sh", "-c", forwardAndFilter], tapRules(identity));
  await runCommand("ip", ["-netns", netns, "-batch", "-"], {
    input: `address add ${identity.guestAddress}/32 dev eth0
address add 10.200.0.99/32 dev eth0
link set lo up
link set eth0 up
route add 169.254.0.1 dev eth0
route add default via 169.254.0.1 dev eth0 src ${identity.guestAddress}
`,
  });
  return netns;
}

try {
  await runCommand("ip", ["-batch", "-"], {
    input: `link set lo up
link add out0 type veth peer name eth0 netns ${outside}
address add 198.51.100.1/24 dev out0
link set out0 up
route add 169.254.169.254 dev out0
route add 168.63.129.16 dev out0
route add 192.168.77.0/24 dev out0
`,
  });
  await runCommand("ip", ["-netns", outside, "-batch", "-"], {
    input: [`${internet}/24`, "169.254.169.254/32", "168.63.129.16/32", `${resolver}/32`, "192.168.77.1/32"]
      .map((address) => `address add ${address} dev eth0\n`)
      .concat("link set eth0 up\n")
      .join(""),
  });
  const rules = { instanceId: id, subnet, resolvers: [resolver] };
  const claimed = await claimSubnet(rules);
  await LinuxNetworks.open(rules);
  const instance = { id, subnet, uidBase: 1_879_048_192 };
  const [one, two] = [slotIdentity(instance, 5), slotIdentity(instance, 6)];
  const [guestOne, guestTwo] = [await guest(one), await guest(two)];
  await serve(outside, port);
  await serve(outside, 53);
  await serve(guestOne, port);
  await serve(guestTwo, port);
  const host = createServer((socket) => socket.end("host")).listen(port, "0.0.0.0");
  await once(host, "listening");

  const fromHost = async (address: string) => {
    const script = dial.replace("HOST", address).replace("PORT", `${port}`);
    return (await runCommand(process.execPath, ["-e", script])).trim();
  };
  const outcomes = {
    claimed,
    hostToGuest: await fromHost(one.guestAddress),
    guestToInternet: await connect(guestOne, internet),
    guestToResolver: await connect(guestOne, resolver, 53),
    ...Object.fromEntries(
      await Promise.all(
        Object.entries({
          guestToResolverOtherPort: connect(guestOne, resolver),
          guestToPrivate: connect(guestOne, "192.168.77.1"),
          guestToMetadata: connect(guestOne, "169.254.169.254"),
          guestToPublicMetadata: connect(guestOne, "168.63.129.16"),
          guestToHostSide: connect(guestOne, hostSide),
          guestToHostPublic: connect(guestOne, "198.51.100.1"),
          guestToGuest: connect(guestOne, two.guestAddress),
        }).map(async ([name, outcome]) => [name, await outcome]),
      ),
    ),
  };
  const { seen } = await collect(outside);
  await say(guestOne, "honest", one.guestAddress);
  await say(guestOne, "unused-address", "10.200.0.99");
  // The host's own rules must hold for a VM that got past its netns: open the tap's filter, take a neighbour's address.
  await inNetns(one.netns, ["nft", "flush", "ruleset"]);
  await inNetns(guestOne, ["ip", "address", "add", `${two.guestAddress}/32`, "dev", "eth0"]);
  await say(guestOne, "unused-address-past-filter", "10.200.0.99");
  await say(guestOne, "stolen-address", two.guestAddress);
  await say(guestOne, "end", one.guestAddress);
  // From outside, a new connection into the subnet.
  await runCommand("ip", ["-netns", outside, "route", "add", "10.200.0.0/24", "via", "198.51.100.1"]);
  const outsideToGuest = await connect(outside, one.guestAddress);
  const seenOutside = await seen;
  // Each datagram is a connection to track; another VM must still get one.
  await inNetns(guestOne, [process.execPath, "-e", flood.replace("FROM", one.guestAddress).replace("HOST", internet)]);
  const tracked = Number(await readFile("/proc/sys/net/netfilter/nf_conntrack_count", "utf8"));
  const afterFlood = { tracked: tracked > 8000 && tracked < 9000, other: await connect(guestTwo, internet) };
  process.stdout.write(JSON.stringify({ ...outcomes, seenOutside, outsideToGuest, afterFlood }));
  host.close();
} finally {
  for (const child of listeners) child.kill();
  const cleanup = [5, 6].flatMap((slot) => [
    `netns delete unkey-${id}-${slot}`,
    `netns delete unkey-${id}-${slot}-guest`,
  ]);
  await runCommand("ip", ["-force", "-batch", "-"], { input: `${cleanup.join("\n")}\n` }).catch(() => undefined);
}
