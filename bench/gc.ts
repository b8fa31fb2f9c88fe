import { execFileSync } from "node:child_process";
import { createHash } from "node:crypto";
import { once } from "node:events";
import { mkdirSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { DatabaseSync } from "node:sqlite";
import { Worker } from "node:worker_threads";
import { AssetKind } from "@unkey/api/asset";
import { newId } from "@unkey/base";
import { type Figure, median } from "./figure.ts";
import { type AssetDaemon, openAssetDaemon } from "./support/asset-daemon.ts";
import { warmMemory } from "./support/warm-memory.ts";

const assetCount = 100_000;
const dayMs = 86_400_000;

const rounds = 3;

interface Measured {
  readonly seconds: number;
  /** Longest pause of the daemon's event loop, and slowest of the others' calls, meanwhile. */
  readonly pauseMs: number;
  readonly slowestMs: number;
}

interface Pass {
  readonly seconds: number;
  readonly marked: number;
  readonly swept: number;
  readonly freedBytes: bigint;
}

/**
 * 100,000 assets of one tenant, each with content of its own, idle beyond their grace: one pass marks them, the next sweeps
 * them, and then their files go in the background. Meanwhile another client reads an asset and takes and ends a lease on it,
 * again and again. The daemon is a process of its own; times are those of its callers. How long passes take is the median of rounds, each
 * with a daemon of its own; pauses are the longest of all rounds.
 */
export async function* run(): AsyncGenerator<Figure> {
  const passes: { mark: Measured; sweep: Measured }[] = [];
  for (let round = 1; round < rounds; round++) {
    await using bed = await GarbageBed.start();
    passes.push(await bed.passes());
  }
  await using bed = await GarbageBed.start();
  passes.push(await bed.passes());
  const remove = await bed.removal();
  const middle = (of: (pass: (typeof passes)[number]) => number) => round2(median(passes.map(of)));
  yield { name: "gc.sweep_100k_assets", value: middle(({ sweep }) => sweep.seconds), unit: "s", goal: 2 };
  yield { name: "gc.mark_100k_assets", value: middle(({ mark }) => mark.seconds), unit: "s", goal: 2 };
  for (const kind of ["mark", "sweep"] as const) {
    const pauseMs = round2(Math.max(...passes.map((pass) => pass[kind].pauseMs)));
    const slowestMs = round2(Math.max(...passes.map((pass) => pass[kind].slowestMs)));
    yield { name: `gc.${kind}_event_loop_pause_max`, value: pauseMs, unit: "ms", goal: 20 };
    yield { name: `gc.${kind}_slowest_other_call`, value: slowestMs, unit: "ms", goal: 20 };
  }
  yield { name: "gc.files_gone_after_sweep", value: round2(remove.seconds), unit: "s", goal: 300 };
  yield { name: "gc.remove_event_loop_pause_max", value: round2(remove.pauseMs), unit: "ms", goal: 20 };
  yield { name: "gc.remove_slowest_other_call", value: round2(remove.slowestMs), unit: "ms", goal: 20 };
}

/** A daemon full of garbage, and the other client's calls. */
class GarbageBed implements AsyncDisposable {
  readonly #daemon: AssetDaemon;
  readonly #metald: ReturnType<AssetDaemon["client"]>;
  readonly #assetId: string;
  #slowestMs = 0;
  #calls = 0;

  private constructor(daemon: AssetDaemon, assetId: string) {
    this.#daemon = daemon;
    this.#metald = daemon.client("metald");
    this.#assetId = assetId;
  }

  static async start(): Promise<GarbageBed> {
    const daemon = openAssetDaemon();
    await daemon.start();
    const { assetId } = await daemon.client("builderd").uploadAsset(upload("the asset that the others use"));
    await daemon.stop();
    fill(daemon.dataDir);
    execFileSync("sync"); // what that left to be written would be written during the passes
    warmMemory();
    await daemon.start();
    const bed = new GarbageBed(daemon, assetId);
    while (bed.#calls < 600) await bed.#others(); // the first ones compile code
    return bed;
  }

  async passes(): Promise<{ mark: Measured; sweep: Measured }> {
    const mark = await this.#pass({ marked: assetCount, swept: 0 });
    return { mark, sweep: await this.#pass({ marked: 0, swept: assetCount }) };
  }

  /** Waits for the files of what was swept to go. */
  async removal(): Promise<Measured> {
    this.#slowestMs = 0;
    const startMs = performance.now();
    while (contentsIn(this.#daemon.dataDir) > 1) {
      const untilMs = performance.now() + 500;
      while (performance.now() < untilMs) await this.#others();
    }
    const seconds = (performance.now() - startMs) / 1000;
    return { seconds, pauseMs: await this.#daemon.longestPauseMs(), slowestMs: this.#slowestMs };
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.#daemon[Symbol.asyncDispose]();
  }

  /** One pass in another thread while the others' calls go on; everything that was slow in between. */
  async #pass(expected: Pick<Pass, "marked" | "swept">): Promise<Measured> {
    await this.#daemon.longestPauseMs();
    this.#slowestMs = 0;
    const worker = new Worker(new URL("./support/collect-worker.ts", import.meta.url), {
      workerData: this.#daemon.access("operator"),
    });
    const answer = once(worker, "message") as Promise<[Pass]>;
    const state = { ended: false };
    const end = answer.finally(() => {
      state.ended = true;
    });
    while (!state.ended) await this.#others();
    const [pass] = await end;
    const pauseMs = await this.#daemon.longestPauseMs();
    if (pass.marked !== expected.marked || pass.swept !== expected.swept) {
      throw new Error(`the pass marked ${pass.marked} and swept ${pass.swept}`);
    }
    const measured = { seconds: pass.seconds, pauseMs, slowestMs: this.#slowestMs };
    console.error(expected, measured);
    return measured;
  }

  async #others(): Promise<void> {
    const metald = this.#metald;
    const assetId = this.#assetId;
    await this.#timed(metald.getAsset({ assetId }));
    const { lease } = await this.#timed(
      metald.prepareAssets({
        leaseKey: `other_${this.#calls}`,
        placements: [{ assetId, fileName: "rootfs" }],
        targetDir: join(this.#daemon.stagingRoot, "other"),
        leaseMs: 60_000n,
      }),
    );
    await this.#timed(metald.releaseLease({ leaseId: lease?.leaseId ?? "" }));
  }

  async #timed<T>(call: Promise<T>): Promise<T> {
    this.#calls++;
    const startMs = performance.now();
    const answer = await call;
    this.#slowestMs = Math.max(this.#slowestMs, performance.now() - startMs);
    return answer;
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
