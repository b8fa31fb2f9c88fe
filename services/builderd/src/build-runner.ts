import { mkdir, rm } from "node:fs/promises";
import { join } from "node:path";
import { type Clock, formatBytes, ServiceError, type TenantId } from "@unkey/base";
import type { Metrics } from "@unkey/daemon";
import {
  fetchLayers,
  type ImageSource,
  type OnRetry,
  type Platform,
  parseImageReference,
  type RegistryCredentials,
  type ResolvedManifest,
  resolveImage,
  resolveManifest,
  resolveUser,
  type writeRootfs,
} from "@unkey/oci";
import type { BuildFeed } from "./build-feed.ts";
import {
  type Build,
  type BuildResult,
  type BuildSource,
  type RootfsRecipe,
  rootfsIdentity,
  rootfsKey,
  rootfsLabels,
} from "./domain/build.ts";
import { type BuildPolicy, checkImageAllowed } from "./domain/policy.ts";
import { commandOf, withHome } from "./domain/process.ts";
import type { AssetRegistry, Attester, BuildStore, CredentialStore, FetchQuota, RulesSource } from "./ports.ts";
import { StepProgress } from "./step-progress.ts";

export interface BuildRunnerDeps {
  readonly store: BuildStore;
  readonly assets: AssetRegistry;
  readonly attester: Attester;
  readonly rules: RulesSource;
  readonly fetchQuota: FetchQuota;
  readonly logins: CredentialStore;
  readonly feed: BuildFeed;
  /** Where an image is read from. */
  readonly openImage: (source: BuildSource, options: OpenImageOptions) => ImageSource;
  readonly writeRootfs: typeof writeRootfs;
  readonly platform: Platform;
  /** Private; emptied at each start. */
  readonly scratchDirectory: string;
  readonly clock: Clock;
  readonly metrics: Metrics;
}

export interface OpenImageOptions {
  readonly tenantId: TenantId;
  readonly credentials: RegistryCredentials | undefined;
  readonly plainHttp: boolean;
  readonly onRetry: OnRetry;
}

/** Does the work of one build, from its reference to a registered asset. */
export class BuildRunner {
  readonly #deps: BuildRunnerDeps;
  /** Builds of the same tenant and root filesystem run one after the other, so that the second finds the first's result. */
  readonly #sameRootfs = new Map<string, Promise<void>>();

  constructor(deps: BuildRunnerDeps) {
    this.#deps = deps;
  }

  /** Runs a pending build to its completion, or throws what fails it. Either way nothing of it is left on disk before. */
  async run(build: Build, credentials: RegistryCredentials | undefined, signal: AbortSignal): Promise<void> {
    const { openImage, platform, store, feed, rules } = this.#deps;
    const { request, tenantId, buildId } = build;
    const progress = new StepProgress(this.#deps, build);
    try {
      await progress.move("pending", "pull");
      // As they are now, not as they were when the build was asked for.
      const { policy, policyDigest } = rules.rulesOf(tenantId);
      checkImageAllowed(policy, request.source);
      const source = openImage(request.source, {
        tenantId,
        credentials: credentials ?? (await this.#keptLogin(build)),
        plainHttp: request.plainHttp,
        onRetry: (reason, waitMs) => this.#sayLater(build, reason, waitMs),
      });
      const manifest = await resolveManifest(source, platform, signal);
      const imageDigest = manifest.digest;
      const recipe: RootfsRecipe = { imageDigest, platform: build.platform, format: request.format, policyDigest };
      await store.setResolved(build, { imageDigest, policyDigest });
      await this.#say(build, `${build.imageName} is ${imageDigest}`);
      using _turn = await this.#turn(tenantId, rootfsKey(recipe), signal);
      const cached = await this.#cached(build, recipe, signal);
      const result = cached ?? (await this.#make(progress, source, manifest, recipe, policy, signal));
      await this.#complete(progress, result, recipe, cached !== undefined);
    } finally {
      feed.clearProgress(buildId);
    }
  }

  async #make(
    progress: StepProgress,
    source: ImageSource,
    manifest: ResolvedManifest,
    recipe: RootfsRecipe,
    policy: BuildPolicy,
    signal: AbortSignal,
  ): Promise<BuildResult> {
    const { platform, assets, scratchDirectory, fetchQuota } = this.#deps;
    const { build } = progress;
    if (recipe.format !== "erofs") throw new ServiceError("UNIMPLEMENTED", "ext4 is not written by this release");
    const image = await resolveImage(source, manifest, platform, policy.limits, signal);
    const { argv, env, workingDir, stopSignal, exposedPorts, user } = image.config;
    commandOf(argv, build.request.argvOverride, source.name); // before any layer is fetched
    // Its own for each attempt: a tool of a process that died may still write into the last one.
    const scratch = join(scratchDirectory, `${build.buildId}-${build.attempts + 1}`);
    try {
      await mkdir(scratch, { recursive: true, mode: 0o700 });
      await this.#say(build, `fetching ${image.layers.length} layers, ${formatBytes(image.layerBytes)}`);
      await fetchQuota.admitBytes(build, image.layerBytes);
      let fetched = 0;
      const layers = await fetchLayers(source, image, scratch, {
        signal,
        onBytes: (done) => progress.bytes((fetched = done), image.layerBytes),
      }).finally(() => fetchQuota.settleBytes(build, fetched));

      await progress.move("pulling", "extract");
      const imagePath = join(scratch, "rootfs.erofs");
      const facts = await this.#deps.writeRootfs({
        layers,
        scratchDirectory: scratch,
        imagePath,
        identity: rootfsIdentity(recipe, policy.setuid),
        limits: policy.limits,
        signal,
        onBytes: (done, total) => progress.bytes(done, total),
        onWriting: () => progress.move("extracting", "write"),
      });
      if (facts.droppedXattrs.length > 0) {
        await this.#say(build, `left out extended attributes: ${facts.droppedXattrs.join(", ")}`);
      }
      const { uid, gid, groups, home } = resolveUser(user, facts.passwd, facts.group);

      await progress.move("writing", "register");
      const { tenantId } = build;
      const asset = await assets.store(
        { tenantId, name: source.name.slice(0, 255), path: imagePath, labels: rootfsLabels(recipe) },
        signal,
        (done, total) => progress.bytes(done, total),
      );
      return {
        imageDigest: manifest.digest,
        rootfsAssetId: asset.assetId,
        rootfsBytes: asset.sizeBytes,
        provenanceAssetId: "",
        sbomAssetId: "",
        process: { argv, env: withHome(env, home), workingDir, uid, gid, groups, stopSignal, exposedPorts },
      };
    } finally {
      await rm(scratch, { recursive: true, force: true });
    }
  }

  async #complete(progress: StepProgress, result: BuildResult, recipe: RootfsRecipe, cacheHit: boolean): Promise<void> {
    const { build } = progress;
    const { process, rootfsAssetId, rootfsBytes } = result;
    const argv = commandOf(process.argv, build.request.argvOverride, build.imageName);
    await this.#say(build, `${cacheHit ? "found" : "stored"} ${rootfsAssetId}, ${formatBytes(rootfsBytes)}`);
    await progress.move(cacheHit ? "pulling" : "registering", "complete", {
      completion: { result, rootfsKey: rootfsKey(recipe), process: { ...process, argv }, cacheHit },
    });
  }

  async #cached(build: Build, recipe: RootfsRecipe, signal: AbortSignal): Promise<BuildResult | undefined> {
    const { store, assets } = this.#deps;
    const key = rootfsKey(recipe);
    const cached = await store.findResult(build.tenantId, key);
    if (cached === undefined) return undefined;
    if (await assets.isAvailable(build.tenantId, cached.rootfsAssetId, signal)) return cached;
    await store.forgetResult(build.tenantId, key); // collected since: it is made again
    return undefined;
  }

  async #turn(tenantId: TenantId, key: string, signal: AbortSignal): Promise<Disposable> {
    const name = `${tenantId} ${key}`;
    for (let other = this.#sameRootfs.get(name); other !== undefined; other = this.#sameRootfs.get(name)) {
      await settledOrAborted(other, signal);
    }
    const mine = Promise.withResolvers<void>();
    this.#sameRootfs.set(name, mine.promise);
    return {
      [Symbol.dispose]: () => {
        this.#sameRootfs.delete(name);
        mine.resolve();
      },
    };
  }

  /** What the operator keeps for the tenant. It is never what a build was asked with, so a restart does not lose it. */
  async #keptLogin({ tenantId, request: { source } }: Build): Promise<RegistryCredentials | undefined> {
    return source.kind === "reference"
      ? this.#deps.logins.find(tenantId, parseImageReference(source.reference))
      : undefined;
  }

  /** A line from where nobody waits for it; one that cannot be written is lost, the build is not. */
  #sayLater(build: Build, reason: string, waitMs: number): void {
    const then = waitMs === 0 ? "" : `; trying again in ${(waitMs / 1000).toFixed(1)} s`;
    this.#say(build, `${reason}${then}`).catch(() => {});
  }

  async #say(build: Build, text: string): Promise<void> {
    const { store, clock, feed } = this.#deps;
    await store.log(build, text, clock.nowMs());
    feed.changed(build.buildId);
  }
}

async function settledOrAborted(promise: Promise<void>, signal: AbortSignal): Promise<void> {
  signal.throwIfAborted();
  const aborted = Promise.withResolvers<void>();
  const onAbort = (): void => aborted.reject(signal.reason);
  signal.addEventListener("abort", onAbort, { once: true });
  try {
    await Promise.race([promise, aborted.promise]);
  } finally {
    signal.removeEventListener("abort", onAbort);
  }
}
