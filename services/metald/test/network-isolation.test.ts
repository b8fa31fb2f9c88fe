import assert from "node:assert/strict";
import { randomBytes } from "node:crypto";
import { test } from "node:test";
import { fileURLToPath } from "node:url";
import { runCommand } from "../src/adapters/run-command.ts";
import { hostNetworkSkip } from "./support/skip-reasons.ts";

test("a guest reaches the internet and nothing near it; only the host reaches a guest", {
  skip: hostNetworkSkip(),
}, async (t) => {
  const id = randomBytes(3).toString("hex");
  const [host, outside] = [`unkeytest-${id}-host`, `unkeytest-${id}-out`];
  t.after(() =>
    runCommand("ip", ["-force", "-batch", "-"], { input: `netns delete ${host}\nnetns delete ${outside}\n` }),
  );
  await runCommand("ip", ["-batch", "-"], { input: `netns add ${host}\nnetns add ${outside}\n` });
  const scenario = fileURLToPath(new URL("network-scenario.ts", import.meta.url));
  const output = await runCommand("ip", ["netns", "exec", host, process.execPath, scenario, id, outside], {
    timeoutMs: 60_000,
  });
  assert.deepEqual(JSON.parse(output), {
    claimed: true,
    hostToGuest: "from ::ffff:10.200.0.1",
    guestToInternet: "from ::ffff:198.51.100.1",
    guestToResolver: "from ::ffff:198.51.100.1",
    guestToResolverOtherPort: "timeout",
    guestToPrivate: "timeout",
    guestToMetadata: "timeout",
    guestToPublicMetadata: "timeout",
    guestToHostSide: "timeout",
    guestToHostPublic: "timeout",
    guestToGuest: "timeout",
    seenOutside: "honest,end",
    outsideToGuest: "timeout",
    afterFlood: { tracked: true, other: "from ::ffff:198.51.100.1" },
  });
});
