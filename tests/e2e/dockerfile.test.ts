import assert from "node:assert/strict";
import { copyFileSync, existsSync, mkdirSync, mkdtempSync, readdirSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { test } from "node:test";
import { busyboxPath } from "@unkey/oci/testing";
import { startPlatform } from "@unkey/testkit";
import { skipReason } from "./harness/host.ts";
import { getJson, runCli, visit } from "./harness/public-api.ts";

/** From a Dockerfile to an address that answers, in one command; and what was secret is nowhere. */
const skip = skipReason || (!existsSync("/usr/bin/buildah") && "buildah is not installed");
const guestDir = join(import.meta.dirname, "../../node_modules/.cache/unkey-guest");

test("`unkey deploy` of a directory with a Dockerfile", { skip }, async () => {
  await using stack = new AsyncDisposableStack();
  const folder = mkdtempSync(join(tmpdir(), "unkey-dockerfile-"));
  stack.defer(() => rmSync(folder, { recursive: true, force: true }));
  const platform = stack.use(await startPlatform({ guestDir }));
  const directory = join(folder, "From Docker");
  for (const each of [directory, join(folder, "tmp")]) mkdirSync(each);
  copyFileSync(busyboxPath, join(directory, "busybox"));
  writeFileSync(join(directory, "left-out"), "left out");
  writeFileSync(join(directory, ".dockerignore"), "left-out\n");
  writeFileSync(
    join(directory, "Dockerfile"),
    [
      "FROM scratch",
      "ARG GREETING",
      "COPY . /srv/",
      'RUN --mount=type=secret,id=token ["/srv/busybox", "sh", "-c", "cd /srv && chmod 755 busybox && echo $GREETING $(./busybox wc -c < /run/secrets/token) $(./busybox ls) > index.html"]',
      "ENV PORT=8080",
      "EXPOSE 8080",
      'CMD ["/srv/busybox", "httpd", "-f", "-p", "8080", "-h", "/srv"]',
    ].join("\n"),
  );
  const [secret, argument] = ["a-secret-of-the-build", "argument-of-the-build"];
  writeFileSync(join(folder, "token"), secret);
  writeFileSync(
    join(folder, "storage.conf"),
    `[storage]\ndriver = "vfs"\ngraphroot = "${join(folder, "graph")}"\nrunroot = "${join(folder, "run")}"\n`,
  );
  const run = await runCli(
    platform,
    ["deploy", directory, "--build-arg", "GREETING", "--secret", `id=token,src=${join(folder, "token")}`],
    {
      PATH: "/usr/sbin:/usr/bin:/sbin:/bin",
      HOME: folder,
      TMPDIR: join(folder, "tmp"),
      CONTAINERS_STORAGE_CONF: join(folder, "storage.conf"),
      BUILDAH_ISOLATION: "chroot",
      GREETING: argument,
    },
  );
  assert.equal(run.exitCode, 0, run.out + run.err);
  assert.match(run.out, /✓ image .* built by buildah\n/);
  assert.deepEqual(readdirSync(join(folder, "tmp")), []);
  const { url } = await getJson<{ url: string }>(platform, "/v1/apps/from-docker");
  const page = await visit(platform, url, "/");
  assert.equal(page.status, 200, page.body);
  assert.equal(page.body, `${argument} ${secret.length} Dockerfile busybox\n`);
  for (const path of ["/v1/deployments", "/v1/builds"]) {
    const told = JSON.stringify(await getJson(platform, path));
    assert.ok(!told.includes(secret) && !told.includes(argument), path);
  }
});
