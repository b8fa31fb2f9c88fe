import assert from "node:assert/strict";
import { execFileSync } from "node:child_process";
import { createReadStream, existsSync } from "node:fs";
import { readdir, readFile, writeFile } from "node:fs/promises";
import { join } from "node:path";
import { type TestContext, test } from "node:test";
import { createGzip } from "node:zlib";
import { BuildState } from "@unkey/api/builder";
import { newId, type TenantId } from "@unkey/base";
import { createLogger } from "@unkey/daemon";
import { assembleImage } from "@unkey/oci";
import { needsRegistry, pushLayout, startTestRegistry, testLogin } from "@unkey/oci/testing";
import { CredentialFile } from "../src/adapters/credential-file.ts";
import { type Builder, build, fromRegistry, fromUpload, startBuilder, temporary, uploadParts } from "./harness.ts";

const tenantId = newId("tenant");

async function logOf(builder: Builder, tenant: TenantId, buildId: string): Promise<string> {
  const lines: string[] = [];
  for await (const { text } of builder.as(tenant).streamBuildLogs({ tenantId: tenant, buildId })) lines.push(text);
  return lines.join("\n");
}

async function emptyImage(context: TestContext): Promise<string> {
  const layout = join(await temporary(context), "layout");
  await assembleImage({ directory: layout, files: [], config: { Cmd: ["/hello"] } });
  return layout;
}

test("a login that the operator keeps for a tenant is used for that tenant only, and written nowhere else", {
  skip: needsRegistry,
}, async (context) => {
  await using registry = await startTestRegistry({ login: true });
  const place = { host: registry.host, repository: "team/private" };
  await pushLayout({ layout: await emptyImage(context), ...place, tag: "v1", login: testLogin });
  const path = join(await temporary(context), "logins.json");
  await writeFile(path, JSON.stringify({ [tenantId]: { [`${registry.host}/team`]: testLogin } }), { mode: 0o600 });
  const lines: string[] = [];
  const log = createLogger({ level: "trace", write: (line) => lines.push(line) });
  const builder = await startBuilder(context, { logins: new CredentialFile(path, log) });
  const image = fromRegistry(`${registry.host}/team/private:v1`);
  const made = await build(builder, tenantId, image);
  assert.equal(made.state, BuildState.COMPLETED, JSON.stringify(made.failure));
  const others = await build(builder, newId("tenant"), image);
  assert.equal(others.failure?.reason, "REGISTRY_CREDENTIALS_REQUIRED");
  // The build's own login comes first.
  const own = await build(builder, tenantId, { ...image, credentials: { ...testLogin, password: "wrong" } });
  assert.equal(own.failure?.reason, "REGISTRY_CREDENTIALS_REJECTED");
  await builder.close();
  for (const name of await readdir(builder.directory, { recursive: true })) {
    const text = await readFile(join(builder.directory, name), "latin1").catch(() => "");
    assert.ok(!text.includes(testLogin.password), `${name} holds the password`);
  }
  assert.ok(![...lines, ...builder.lines].join("\n").includes(testLogin.password));
});

test("a build's log says why it waits", async (context) => {
  const builder = await startBuilder(context);
  const away = await build(builder, tenantId, fromRegistry("127.0.0.1:1/app"));
  assert.equal(away.failure?.reason, "REGISTRY_UNAVAILABLE");
  const log = await logOf(builder, tenantId, away.buildId);
  assert.match(log, /127\.0\.0\.1:1 cannot be reached \(ECONNREFUSED\); trying again in \d\.\d s\n/);
});

test("an archive of docker save is built like the layout that it came from", {
  skip: !existsSync("/usr/bin/skopeo") && "skopeo is not installed",
}, async (context) => {
  const builder = await startBuilder(context);
  const archive = join(await temporary(context), "image.tar");
  execFileSync(
    "skopeo",
    ["copy", "--insecure-policy", `oci:${await emptyImage(context)}`, `docker-archive:${archive}:app:v1`],
    { stdio: "pipe" },
  );
  const { uploadId } = await builder
    .as(tenantId)
    .uploadImage(uploadParts(tenantId, createReadStream(archive).pipe(createGzip()), "", "image.tar.gz"));
  const made = await build(builder, tenantId, fromUpload(uploadId));
  assert.equal(made.state, BuildState.COMPLETED, JSON.stringify(made.failure));
  assert.deepEqual(made.process?.argv, ["/hello"]);
});
