import { mkdtemp, rm } from "node:fs/promises";
import { createRequire } from "node:module";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { type ChdbServer, startChdb } from "@unkey/clickhouse";

/** A reason to skip where there is no engine for the platform. */
export const noEngine: string | false = hasEngine()
  ? false
  : "the optional package chdb has no build for this platform";

function hasEngine(): boolean {
  try {
    createRequire(import.meta.resolve("@unkey/clickhouse")).resolve("chdb");
    return true;
  } catch {
    return false;
  }
}

/** A folder that is gone after the test. */
export async function temporaryFolder(): Promise<AsyncDisposable & { readonly path: string }> {
  const path = await mkdtemp(join(tmpdir(), "unkey-billing-"));
  return { path, [Symbol.asyncDispose]: () => rm(path, { recursive: true, force: true, maxRetries: 5 }) };
}

/** The engine in a child process, on a folder of its own. */
export async function temporaryEngine(): Promise<AsyncDisposable & { readonly clickHouse: ChdbServer }> {
  await using stack = new AsyncDisposableStack();
  const folder = stack.use(await temporaryFolder());
  const log = { info: () => undefined, warn: () => undefined };
  const clickHouse = stack.use(await startChdb({ dataDir: join(folder.path, "clickhouse"), log }));
  const owned = stack.move();
  return { clickHouse, [Symbol.asyncDispose]: () => owned.disposeAsync() };
}
