import { createHash } from "node:crypto";
import { once } from "node:events";
import { mkdirSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { DatabaseSync } from "node:sqlite";
import { Worker } from "node:worker_threads";
import { AssetKind } from "@unkey/api/asset";
import { newId } from "@unkey/base";
import type { Figure } from "./figure.ts";
import { openAssetDaemon } from "./support/asset-daemon.ts";

const assetCount = 100_000;
const dayMs = 86_400_000;

interface Pass {
  readonly seconds: number;
  readonly marked: number;
  readonly swept: number;
  readonly freedBytes: bigint;
}

/**
 * 100,000 assets of one tenant, each with content of its own, idle beyond their grace: one pass marks them, the next sweeps
 * them, and then their files go in the background. Meanwhile another client reads an asset and takes and ends a lease on it,
 * again and again. The daemon is a process of its own; times are those of its callers.
 */
export async function* run(): AsyncGenerator<Figure> {
  await using daemon = openAssetDaemon();
  await daemon.start();
  const builderd = daemon.client("builderd");
  const { assetId } = await builderd.uploadAsset(upload("the asset that the others use"));
  await daemon.stop();
  fill(daemon.dataDir);
  await daemon.start();
  const metald = daemon.client("metald");
  let slowestMs = 0;
  const timed = async <T>(call: Promise<T>): Promise<T> => {
    const startMs = performance.now();
    const answer = await call;
    slowestMs = Math.max(slowestMs, performance.now() - startMs);
    return answer;
  };
  const others = async (round: number) => {
    await timed(metald.getAsset({ assetId }));
    const { lease } = await timed(
      metald.prepareAssets({
        leaseKey: `other_${round}`,
        placements: [{ assetId, fileName: "rootfs" }],
        targetDir: join(daemon.stagingRoot, "other"),
        leaseMs: 60_000n,
      }),
    );
    await timed(metald.releaseLease({ leaseId: lease?.leaseId ?? "" }));
  };
  for (let round = 0; round < 200; round++) await others(round);

  /** One pass in another thread while the calls above go on; everything that was slow in between. */
  const measure = async (expected: Pick<Pass, "marked" | "swept">) => {
    await daemon.longestPauseMs();
    slowestMs = 0;
    const worker = new Worker(new URL("./support/collect-worker.ts", import.meta.url), {
      workerData: daemon.access("operator"),
    });
    const answer = once(worker, "message") as Promise<[Pass]>;
    const state = { ended: false };
    const end = answer.finally(() => {
      state.ended = true;
    });
    let rounds = 0;
    while (!state.ended) await others(rounds++);
    const [pass] = await end;
    const pauseMs = await daemon.longestPauseMs();
    if (pass.marked !== expected.marked || pass.swept !== expected.swept) {
      throw new Error(`the pass marked ${pass.marked} and swept ${pass.swept}`);
    }
    console.error(`${pass.seconds.toFixed(2)} s, ${rounds} rounds of other calls, ${pass.freedBytes} bytes freed`);
    return { seconds: pass.seconds, pauseMs, slowestMs };
  };
  const mark = await measure({ marked: assetCount, swept: 0 });
  const sweep = await measure({ marked: 0, swept: assetCount });
  const remove = await (async () => {
    slowestMs = 0;
    const startMs = performance.now();
    for (let round = 0; contentsIn(daemon.dataDir) > 1; ) {
      const untilMs = performance.now() + 500;
      while (performance.now() < untilMs) await others(round++);
    }
    return {
      seconds: (performance.now() - startMs) / 1000,
      pauseMs: await daemon.longestPauseMs(),
      slowestMs,
    };
  })();
  yield { name: "gc.sweep_100k_assets", value: round2(sweep.seconds), unit: "s", goal: 2 };
  yield { name: "gc.mark_100k_assets", value: round2(mark.seconds), unit: "s", goal: 2 };
  yield { name: "gc.files_gone_after_sweep", value: round2(remove.seconds), unit: "s", goal: 300 };
  for (const [name, figures] of Object.entries({ mark, sweep, remove })) {
    yield { name: `gc.${name}_event_loop_pause_max`, value: round2(figures.pauseMs), unit: "ms", goal: 20 };
    yield { name: `gc.${name}_slowest_other_call`, value: round2(figures.slowestMs), unit: "ms", goal: 20 };
  }
}

/** Contents of which the catalog knows. */
function contentsIn(dataDir: string): number {
  using db = new DatabaseSync(join(dataDir, "assets.db"), { readOnly: true });
  return Number(db.prepare("SELECT COUNT(*) AS n FROM blobs").get()?.["n"]);
}

/** Rows and files as so many uploads a month ago would have left them; sending them would take minutes. */
function fill(dataDir: string): void {
  const db = new DatabaseSync(join(dataDir, "assets.db"));
  const tenantId = newId("tenant");
  const beforeMs = Date.now() - 30 * dayMs;
  const asset = db.prepare(
    `INSERT INTO assets (tenant_id, asset_id, name, kind, version, state, blob_id, size_bytes, received_bytes, labels, attached_to,
       keep, created_at_ms, last_used_at_ms, idle_since_ms) VALUES (?, ?, ?, 'rootfs', 1, 'available', ?, ?, 0, ?, '', 0, ?, ?, ?)`,
  );
  const blob = db.prepare("INSERT INTO blobs (digest, size_bytes, refs) VALUES (?, ?, 1)");
  db.exec("BEGIN");
  let bytes = 0;
  for (let i = 0; i < assetCount; i++) {
    const content = `content ${i}`;
    const hex = createHash("sha256").update(content).digest("hex");
    const id = newId("asset", beforeMs + i);
    const labels = JSON.stringify([["app", `app-${i % 100}`]]);
    const { lastInsertRowid: blobId } = blob.run(`sha256:${hex}`, content.length);
    asset.run(tenantId, id, `app ${i}`, blobId, content.length, labels, beforeMs + i, beforeMs + i, beforeMs + i);
    const dir = join(dataDir, "blobs", "sha256", hex.slice(0, 2));
    mkdirSync(dir, { recursive: true, mode: 0o700 });
    writeFileSync(join(dir, hex.slice(2)), content, { mode: 0o444 });
    bytes += content.length;
  }
  db.prepare("INSERT INTO tenant_usage (tenant_id, stored_bytes, asset_count) VALUES (?, ?, ?)").run(
    tenantId,
    bytes,
    assetCount,
  );
  db.exec("COMMIT");
  db.close();
}

function upload(text: string) {
  const content = Buffer.from(text);
  const digest = `sha256:${createHash("sha256").update(content).digest("hex")}`;
  const header = { name: "other", kind: AssetKind.ROOTFS, digest, sizeBytes: BigInt(content.length) };
  return (async function* () {
    yield await Promise.resolve({ part: { case: "header" as const, value: header } });
    yield { part: { case: "chunk" as const, value: content } };
  })();
}

function round2(value: number): number {
  return Math.round(value * 100) / 100;
}
