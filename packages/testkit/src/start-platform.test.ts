import assert from "node:assert/strict";
import { existsSync, globSync, readdirSync, readlinkSync } from "node:fs";
import { mkdtemp, rm } from "node:fs/promises";
import { request } from "node:https";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { test } from "node:test";
import { healthPorts, type ServiceName } from "@unkey/daemon";
import { type Platform, startPlatform } from "./start-platform.ts";

/** Needs neither root nor a hypervisor. */
const simulated = { UNKEY_METALD_HYPERVISOR: "memory" };
const names = Object.keys(healthPorts) as ServiceName[];

test("six daemons start in one process, serve, and leave nothing when they stop", async () => {
  await using platform = await startPlatform({ env: simulated }); // disposing twice is harmless
  const { home } = platform;
  const addresses = [...names].flatMap((name) => [...platform.daemon(name).addresses.values()]);
  assert.equal(addresses.length, 13, "rpc and health of each, and the ingress");
  for (const name of names) {
    const answer = await fetch(`http://${platform.daemon(name).addresses.get("health")}/health`);
    const { status, ready } = (await answer.json()) as { status: string; ready: boolean };
    assert.deepEqual({ name, status, ready }, { name, status: "ok", ready: true });
  }
  const { status, json } = await getPlatform(platform, platform.apiKey);
  assert.equal(status, 200);
  assert.equal(json.hosts?.length, 1);
  assert.equal(json.hosts[0]?.hypervisor, "memory");
  assert.equal(listeners().length, addresses.length);
  assert.ok(processesOf(home).length > 0, "the ClickHouse engine is a child process");

  await platform[Symbol.asyncDispose]();
  assert.equal(existsSync(home), false);
  assert.deepEqual(processesOf(home), []);
  assert.deepEqual(listeners(), []);
});

test("two platforms run side by side and know nothing of each other", async () => {
  const [one, other] = await Promise.all([startPlatform({ env: simulated }), startPlatform({ env: simulated })]);
  try {
    assert.notEqual(one.home, other.home);
    const [mine, theirs] = await Promise.all([getPlatform(one, one.apiKey), getPlatform(other, other.apiKey)]);
    assert.equal(mine.status, 200);
    assert.equal(theirs.status, 200);
    assert.notEqual(mine.json.tenantId, theirs.json.tenantId);
    assert.notEqual(mine.json.hosts?.[0]?.hostId, theirs.json.hosts?.[0]?.hostId);
    assert.equal((await getPlatform(one, other.apiKey)).status, 401);
    await assert.rejects(getPlatform({ apiUrl: one.apiUrl, caPem: other.caPem }, one.apiKey), /certificate|signature/);
    await one[Symbol.asyncDispose]();
    assert.equal((await getPlatform(other, other.apiKey)).status, 200, "one ends, the other goes on");
  } finally {
    await Promise.all([one[Symbol.asyncDispose](), other[Symbol.asyncDispose]()]);
  }
  assert.deepEqual([one.home, other.home].flatMap(processesOf), []);
  assert.deepEqual([one.home, other.home].filter(existsSync), []);
});

test("a platform that cannot start takes back what it had started", async (t) => {
  // Its folder is made where TMPDIR says, so that one of another test is not taken for it.
  const scratch = await mkdtemp(join(tmpdir(), "unkey-testkit-"));
  const before = process.env["TMPDIR"];
  process.env["TMPDIR"] = scratch;
  t.after(async () => {
    if (before === undefined) delete process.env["TMPDIR"];
    else process.env["TMPDIR"] = before;
    await rm(scratch, { recursive: true, force: true });
  });
  const lines: string[] = [];
  const starting = startPlatform({
    env: { ...simulated, UNKEY_GATEWAYD_APP_DOMAIN: "not a domain" },
    log: (line) => lines.push(line),
  });
  await assert.rejects(starting, /UNKEY_GATEWAYD_APP_DOMAIN/);
  assert.match(lines.join(""), /"message":"started","service":"metald"/);
  assert.match(lines.join(""), /"message":"stopped","service":"metald"/);
  assert.deepEqual(readdirSync(scratch), []);
  assert.deepEqual(processesOf(scratch), []);
});

interface PlatformJson {
  readonly tenantId?: string;
  readonly hosts?: readonly { readonly hostId: string; readonly hypervisor: string }[];
}

function getPlatform(
  { apiUrl, caPem }: Pick<Platform, "apiUrl" | "caPem">,
  key: string,
): Promise<{ readonly status: number; readonly json: PlatformJson }> {
  return new Promise((resolve, reject) => {
    const headers = { authorization: `Bearer ${key}` };
    const call = request(new URL("/v1/platform", apiUrl), { ca: caPem, agent: false, headers }, (response) => {
      let text = "";
      response.setEncoding("utf8").on("data", (piece: string) => (text += piece));
      response.once("error", reject);
      response.once("end", () => resolve({ status: response.statusCode ?? 0, json: JSON.parse(text) as PlatformJson }));
    });
    call.once("error", reject);
    call.end();
  });
}

/** What this process listens with. */
function listeners(): string[] {
  return process.getActiveResourcesInfo().filter((name) => name === "TCPServerWrap");
}

/** Other processes that have a file of the folder open. */
function processesOf(home: string): string[] {
  const holders = globSync("/proc/[0-9]*/fd/*").filter((link) => {
    try {
      return readlinkSync(link).startsWith(`${home}/`);
    } catch {
      return false; // closed meanwhile, or another user's
    }
  });
  const pids = new Set(holders.map((link) => link.split("/")[2] ?? ""));
  pids.delete(String(process.pid));
  return [...pids];
}
