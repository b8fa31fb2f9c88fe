import assert from "node:assert/strict";
import { execFile } from "node:child_process";
import { existsSync } from "node:fs";
import { mkdir, mkdtemp, readFile, rm, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { after, before, test } from "node:test";
import { promisify } from "node:util";
import type { DevPlatform } from "@unkey/testkit";
import { skipReason } from "./harness/host.ts";
import { sharePlatform } from "./harness/shared-platform.ts";

const run = promisify(execFile);
const skip = skipReason || (existsSync("/usr/bin/skopeo") ? false : "skopeo is not installed");

let platform: DevPlatform;
let scratch: string;
let host: string;
sharePlatform(skip, (started) => (platform = started));

before(async () => {
  if (skip) return;
  scratch = await mkdtemp(join(tmpdir(), "unkey-push-"));
});

after(async () => {
  if (skip) return;
  await rm(scratch, { recursive: true, force: true });
});

test("an image that a registry client pushed to the gateway is deployed by its name and serves", { skip }, async () => {
  const profile = JSON.parse(await readFile(join(platform.home, "cli.json"), "utf8")) as {
    readonly url: string;
    readonly apiKey: string;
    readonly caFile: string;
  };
  host = new URL(profile.url).host;
  const certs = join(scratch, "certs");
  await mkdir(certs);
  await writeFile(join(certs, "ca.crt"), await readFile(profile.caFile));
  const authFile = join(scratch, "auth.json");
  const auth = Buffer.from(`unkey:${profile.apiKey}`).toString("base64");
  await writeFile(authFile, JSON.stringify({ auths: { [host]: { auth } } }), { mode: 0o600 });
  const skopeo = (...args: readonly string[]) =>
    run("skopeo", args, { env: { ...process.env, REGISTRY_AUTH_FILE: authFile } });

  const layout = await platform.helloLayout();
  const digestFile = join(scratch, "digest");
  const image = `docker://${host}/shop/hello:v1`;
  await skopeo("copy", "--dest-cert-dir", certs, "--digestfile", digestFile, `oci:${layout}`, image);
  const digest = (await readFile(digestFile, "utf8")).trim();

  const { stdout } = await platform.unkey(["deploy", `${host}/shop/hello:v1`, "--app", "pushed"]);
  assert.ok(stdout.includes(`image: pushed ${host}/shop/hello:v1 @${digest}`), stdout);
  const { url } = await platform.json<{ url: string }>(["apps", "pushed"]);
  const answer = await platform.get(url);
  assert.equal(answer.status, 200);
  assert.match(answer.body.toString(), /Hello from a microVM/);

  // The name alone finds it too, and what was built once is not built again.
  const again = await platform.unkey(["deploy", "shop/hello:v1", "--app", "again"]);
  assert.ok(again.stdout.includes(`image: pushed shop/hello:v1 @${digest}`), again.stdout);
  assert.match(again.stdout + again.stderr, /build .*cached/);
});

test("an image that was not pushed there is refused by name", { skip }, async () => {
  const refused = await platform.tryUnkey(["deploy", `${host}/shop/hello:v9`, "--app", "pushed"]);
  assert.notEqual(refused.status, 0);
  assert.match(refused.stdout + refused.stderr, /was not pushed to the platform/);
});
