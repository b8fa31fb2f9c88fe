import { availableParallelism } from "node:os";
import { BuildState } from "@unkey/api/builder";
import { startTestRegistry } from "@unkey/oci/testing";
import { type Figure, median } from "./figure.ts";
import { debianLayers, hugeLayers, pushImage } from "./support/bench-image.ts";
import { BuildDaemons } from "./support/build-daemons.ts";
import { downloadAndDecompress, skopeoUmociMke2fs } from "./support/build-peers.ts";
import { MemoryWatch } from "./support/memory-watch.ts";
import { warmMemory } from "./support/warm-memory.ts";

const rounds = 3;
const repeats = 5;
/** As many layers at once as a build of builderd's. */
const parallelLayers = Math.min(4, availableParallelism() + 1);
const mib = 2 ** 20;

/**
 * Image in a registry → root filesystem that can be booted: against the tools that were there before, and against the least work. Each
 * finds memory that the host has at hand.
 */
export async function* run(): AsyncGenerator<Figure> {
  const layers = await debianLayers();
  const archiveBytes = layers.reduce((sum, layer) => sum + layer.archiveBytes, 0);
  await using registry = await startTestRegistry();
  const { host } = registry;
  await using daemons = await BuildDaemons.start();
  const push = (salt: number, topVersion: number) =>
    pushImage(layers, { host, tag: `${salt}-${topVersion}`, salt, topVersion });

  // The first build of a new process also compiles; it counts for nobody.
  await daemons.build(await push(1000, 0));
  const ours: number[] = [];
  const peers: number[] = [];
  const least: number[] = [];
  for (let round = 0; round < rounds; round++) {
    const reference = await push(round, 0);
    ours.push(await seconds("ours", () => timed(daemons, reference)));
    peers.push(await seconds("skopeo + umoci + mke2fs", () => skopeoUmociMke2fs(reference, archiveBytes)));
    least.push(await seconds("download and decompress", () => downloadAndDecompress(reference, parallelLayers)));
  }
  const cold = median(ours);
  yield { name: "build.cold_vs_skopeo_umoci_mke2fs", value: round2(cold / median(peers)), unit: "ratio", goal: 0.2 };
  yield {
    name: "build.cold_vs_download_and_decompress",
    value: round2(cold / median(least)),
    unit: "ratio",
    goal: 1.5,
  };

  const again: number[] = [];
  for (let i = 0; i < repeats; i++) {
    const { build, seconds: took } = await daemons.build(`${host}/bench:${rounds - 1}-0`);
    if (!build.cacheHit) throw new Error("the same digest was built again");
    again.push(took * 1000);
  }
  yield { name: "build.same_digest_again", value: Math.round(median(again)), unit: "ms", goal: 100 };

  const changed: number[] = [];
  for (let i = 0; i < rounds; i++) {
    const reference = await push(rounds - 1, i + 1);
    changed.push(await seconds("one changed layer", () => timed(daemons, reference)));
  }
  yield { name: "build.changed_top_layer_vs_cold", value: round2(median(changed) / cold), unit: "ratio", goal: 0.2 };

  const debianPeak = await peakMemory(daemons, await push(2000, 0), "Debian image");
  yield { name: "build.peak_rss", value: debianPeak, unit: "MiB", goal: 300 };
  const huge = await pushImage(await hugeLayers(), { host, tag: "huge", salt: 0, topVersion: 0 });
  yield { name: "build.peak_rss_4gib", value: await peakMemory(daemons, huge, "4 GiB image"), unit: "MiB", goal: 300 };
}

/** Of builderd and all its workers during one cold build. */
async function peakMemory(daemons: BuildDaemons, reference: string, what: string): Promise<number> {
  using watch = new MemoryWatch(daemons.builderPid);
  await seconds(what, () => timed(daemons, reference));
  console.error(`${what}: at its peak ${watch.peakParts.join(", ")}`);
  return Math.round(watch.peakBytes / mib);
}

/** Seconds of a build; tells where they went. */
async function timed(daemons: BuildDaemons, reference: string): Promise<number> {
  const { seconds: took, build } = await daemons.build(reference);
  const steps = build.steps.map(({ state, startedAtMs, endedAtMs }) => {
    const [name = ""] = Object.entries(BuildState).find(([, value]) => value === state) ?? [];
    return `${name.toLowerCase()} ${(Number(endedAtMs - startedAtMs) / 1000).toFixed(2)}`;
  });
  console.error(`steps: ${steps.join(", ")}`);
  return took;
}

async function seconds(what: string, measure: () => Promise<number>): Promise<number> {
  warmMemory();
  const value = await measure();
  console.error(`${what}: ${value.toFixed(2)} s`);
  return value;
}

function round2(value: number): number {
  return Math.round(value * 100) / 100;
}
