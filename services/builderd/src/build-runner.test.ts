import assert from "node:assert/strict";
import { test } from "node:test";
import { newId, systemClock } from "@unkey/base";
import { Metrics } from "@unkey/daemon";
import type { RegistryCredentials } from "@unkey/oci";
import { BuildFeed } from "./build-feed.ts";
import { BuildRunner, type BuildRunnerDeps, type OpenImageOptions } from "./build-runner.ts";
import type { Build } from "./domain/build.ts";
import { defaultBuildPolicy } from "./domain/policy.ts";

const platform = { os: "linux", architecture: "amd64", variant: "" };

/** How the runner opens an image that was asked for without TLS. */
async function opened(kept: RegistryCredentials | undefined, own: RegistryCredentials | undefined) {
  const asked: OpenImageOptions[] = [];
  const runner = new BuildRunner({
    store: { advance: async () => true, log: async () => undefined },
    rules: { rulesOf: () => ({ policy: defaultBuildPolicy, policyDigest: "sha256:0" }) },
    logins: { find: async () => kept },
    feed: new BuildFeed(),
    openImage: (_: unknown, options: OpenImageOptions) => {
      asked.push(options);
      throw new Error("opened");
    },
    platform,
    clock: systemClock,
    metrics: new Metrics(),
  } as unknown as BuildRunnerDeps);
  const source = { kind: "reference", reference: "registry.test/app" } as const;
  const build = {
    buildId: newId("build"),
    tenantId: newId("tenant"),
    request: { source, plainHttp: true, format: "erofs", argvOverride: [] },
  } as unknown as Build;
  await assert.rejects(runner.run(build, own, new AbortController().signal), /opened/);
  const [options] = asked;
  return [options?.credentials?.username, options?.plainHttp];
}

test("who asks for plain http shows its own login to the network, never the one that the operator keeps", async () => {
  const login = (username: string): RegistryCredentials => ({ username, password: "secret" });
  assert.deepEqual(await opened(undefined, undefined), [undefined, true]);
  assert.deepEqual(await opened(undefined, login("own")), ["own", true]);
  assert.deepEqual(await opened(login("kept"), login("own")), ["own", true]);
  assert.deepEqual(await opened(login("kept"), undefined), ["kept", false]);
});
