import { execFileSync } from "node:child_process";
import { globSync, readFileSync } from "node:fs";
import { mkdtemp, rm } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { DevPlatform } from "@unkey/testkit";
import { type Figure, median } from "./figure.ts";

const deployments = 5;
const settleMs = 15_000;
const mib = 2 ** 20;

/** The main path: memory of the idle platform, time until a cached image serves, until its usage is complete, and of the whole demo. */
export async function* run(): AsyncGenerator<Figure> {
  {
    await using platform = await DevPlatform.start();
    await new Promise((resolve) => setTimeout(resolve, settleMs));
    const rss = await residentBytes(platform);
    yield { name: "deploy.idle_platform_rss", value: Math.round(rss / mib), unit: "MiB", goal: 900 };

    const layout = await platform.helloLayout();
    await platform.unkey(["deploy", layout, "--app", "warm"]);
    const { url } = await platform.json<{ url: string }>(["apps", "warm"]);
    const seconds: number[] = [];
    for (let i = 0; i < deployments; i++) seconds.push(await deploySeconds(platform, layout, `bench${i}`, url));
    console.error(`each deployment: ${seconds.map((value) => value.toFixed(2)).join(", ")} s`);
    yield { name: "deploy.cached_accepted_to_200", value: round(median(seconds)), unit: "s", goal: 6 };
    yield { name: "deploy.usage_complete_after_end", value: round(await usageSeconds(platform)), unit: "s", goal: 2 };
  }
  yield { name: "deploy.demo_from_bare_checkout", value: round(await demoSeconds()), unit: "s", goal: 300 };
}

/** From the acceptance of an image that was built before to the first 200 through the ingress, as a user of the command sees it. */
async function deploySeconds(platform: DevPlatform, layout: string, app: string, warmUrl: string): Promise<number> {
  const url = warmUrl.replace("//warm.", `//${app}.`);
  const deploying = platform.unkey(["deploy", layout, "--app", app, "--json"]);
  let ended = false;
  const onEnd = () => {
    ended = true;
  };
  deploying.then(onEnd, onEnd);
  for (;;) {
    const last = ended; // a deployment that has ended serves, or never will
    const answer = await platform.get(url).catch(() => undefined); // no certificate before the app is known
    if (answer?.status === 200) break;
    if (last) throw new Error(`${app} does not serve: ${(await deploying).stdout}`);
    await new Promise((resolve) => setTimeout(resolve, 50));
  }
  const servedAtMs = Date.now();
  const { stdout } = await deploying;
  const { createdAtMs } = JSON.parse(stdout.trimEnd().split("\n").at(-1) ?? "") as { createdAtMs: string };
  await platform.unkey(["delete", app, "--yes"]);
  return (servedAtMs - Number(createdAtMs)) / 1000;
}

/** From the end of the VM to the first report that calls its usage complete. */
async function usageSeconds(platform: DevPlatform): Promise<number> {
  const stopped = await platform.api("POST", "/v1/apps/warm/stop");
  if (stopped.status !== 200) throw new Error(`not stopped: ${stopped.body.toString()}`);
  const listed = JSON.parse((await platform.api("GET", "/v1/vms?app=warm")).body.toString()) as {
    vms: { vmId: string; endedAtMs: string }[];
  };
  const vm = listed.vms[0];
  if (vm === undefined) throw new Error("the app has no VM");
  for (;;) {
    const answer = await platform.api("GET", `/v1/usage?vmId=${vm.vmId}`);
    const { report } = JSON.parse(answer.body.toString()) as { report?: { vms?: { complete?: boolean }[] } };
    const seconds = (Date.now() - Number(vm.endedAtMs)) / 1000;
    if (report?.vms?.[0]?.complete === true) return seconds;
    if (seconds > 60) throw new Error("the usage of the ended VM was not complete within a minute");
    await new Promise((resolve) => setTimeout(resolve, 50));
  }
}

/** Resident memory of the six daemons and everything that they started, VMs excepted: none runs yet. */
async function residentBytes(platform: DevPlatform): Promise<number> {
  const parents = new Map<number, number>();
  for (const file of globSync("/proc/[0-9]*/stat")) {
    const [, pid = "", parent = ""] = /^(\d+) \(.*\) \S (\d+)/s.exec(readFileSync(file, "utf8")) ?? [];
    parents.set(Number(pid), Number(parent));
  }
  const roots = new Map((await platform.daemons()).map(({ name, pid }) => [pid ?? -1, name]));
  let total = 0;
  for (const pid of parents.keys()) {
    let root = pid;
    while (!roots.has(root) && parents.has(root)) root = parents.get(root) ?? 0;
    const name = roots.get(root);
    if (name === undefined) continue;
    const kib = Number(/^VmRSS:\s+(\d+) kB/m.exec(readFileSync(`/proc/${pid}/status`, "utf8"))?.[1] ?? 0);
    console.error(`${name}${pid === root ? "" : " (child)"}: ${Math.round(kib / 1024)} MiB`);
    total += kib * 1024;
  }
  return total;
}

/** Clones this repository into an empty directory and runs what the README says. */
async function demoSeconds(): Promise<number> {
  const directory = await mkdtemp(join(tmpdir(), "unkey-clone-"));
  try {
    execFileSync("git", ["clone", "--quiet", join(import.meta.dirname, ".."), directory]);
    const startMs = performance.now();
    execFileSync("npm", ["run", "demo", "--", "--once", "--ports", "auto"], {
      cwd: directory,
      stdio: ["ignore", 2, 2],
    });
    return (performance.now() - startMs) / 1000;
  } finally {
    await rm(directory, { recursive: true, force: true });
  }
}

function round(seconds: number): number {
  return Math.round(seconds * 100) / 100;
}
