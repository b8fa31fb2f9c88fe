import assert from "node:assert/strict";
import { after, before } from "node:test";
import { DevPlatform } from "@unkey/testkit";
import { leftovers } from "./host.ts";

/**
 * One platform for all tests of the calling file, none where they are skipped: `take` gets it before the first, with what
 * metald calls it in the names of what it makes on the host. Nothing of it may stay behind there.
 */
export function sharePlatform(skip: string | false, take: (platform: DevPlatform, instance: string) => void): void {
  let platform: DevPlatform | undefined;
  let instance = "";
  before(async () => {
    if (skip) return;
    platform = await DevPlatform.start();
    instance = await platform.instance();
    take(platform, instance);
  });
  after(async () => {
    if (platform === undefined) return;
    await platform[Symbol.asyncDispose]();
    if (instance !== "")
      assert.deepEqual(leftovers(instance, platform.home), [], "nothing may stay behind on the host");
  });
}
