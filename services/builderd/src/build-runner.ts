import { createHash } from "node:crypto";
import { mkdir, rm } from "node:fs/promises";
import { join } from "node:path";
import { type Clock, formatBytes, isServiceError, KeyedTurns, type TenantId } from "@unkey/base";
import type { Metrics } from "@unkey/daemon";
import {
  type ImageSource,
  type OnRetry,
  type Platform,
  parseImageReference,
  type RegistryCredentials,
  type ResolvedImage,
  type ResolvedManifest,
  resolveImage,
  resolveManifest,
  resolveUser,
} from "@unkey/oci";
import { checkSignatures } from "./attest/check-signatures.ts";
import { bringLayers } from "./bring-layers.ts";
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
import type { LayerCache } from "./layer-cache/layer-cache.ts";
import { LayerFeed } from "./layer-feed.ts";
import type {
  AssetRegistry,
  Attester,
  AttestRequest,
  BuildStore,
  CredentialStore,
  FetchQuota,
  RulesSource,
} from "./ports.ts";
import { StepProgress } from "./step-progress.ts";
import { type StoredPart, storePart } from "./store-part.ts";
import { type ImageWorkers, parallelLayers, type RootfsInFile } from "./worker/image-workers.ts";

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
  readonly layers: LayerCache;
  readonly workers: ImageWorkers;
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

/** What a root filesystem is made under. */
interface Terms {
  readonly recipe: RootfsRecipe;
  readonly policy: BuildPolicy;
  readonly signatures: AttestRequest["signatures"];
}

/** Does the work of one build, from its reference to a registered asset. */
export class BuildRunner {
  readonly #deps: BuildRunnerDeps;
  /** Builds of the same tenant and root filesystem run one after the other, so that the second finds the first's result. */
  readonly #sameRootfs = new KeyedTurns();

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
      const kept = credentials === undefined ? await this.#keptLogin(build) : undefined;
      const source = openImage(request.source, {
        tenantId,
        credentials: credentials ?? kept,
        // Who asks may show its own login to the network, not the one that the operator keeps.
        plainHttp: request.plainHttp && kept === undefined,
        onRetry: (reason, waitMs) => this.#sayLater(build, reason, waitMs),
      });
      const manifest = await resolveManifest(source, platform, signal);
      const imageDigest = manifest.digest;
      const recipe: RootfsRecipe = { imageDigest, platform: build.platform, format: request.format, policyDigest };
      await store.setResolved(build, { imageDigest, policyDigest });
      await this.#say(build, `${build.imageName} is ${imageDigest}`);
      using _turn = await this.#sameRootfs.take(`${tenantId} ${rootfsKey(recipe)}`, signal);
      // Also of a cached image: another name of it may have other rules.
      const signatures = await checkSignatures(
        { image: source, source: request.source, manifestDigest: imageDigest, policy },
        signal,
      );
      const cached = await this.#cached(build, recipe, signatures, signal);
      const result = cached ?? (await this.#make(progress, source, manifest, { recipe, policy, signatures }, signal));
      await this.#complete(progress, result, recipe, cached !== undefined);
    } finally {
      feed.clearProgress(buildId);
    }
  }

  async #make(
    progress: StepProgress,
    source: ImageSource,
    manifest: ResolvedManifest,
    { recipe, policy, signatures }: Terms,
    signal: AbortSignal,
  ): Promise<BuildResult> {
    const { platform, scratchDirectory, workers } = this.#deps;
    const { build } = progress;
    const image = await resolveImage(source, manifest, platform, policy.limits, signal);
    const { argv, env, workingDir, stopSignal, exposedPorts, user } = image.config;
    commandOf(argv, build.request.argvOverride, source.name); // before any layer is fetched
    const name = `${build.buildId}-${build.attempts + 1}`;
    const scratch = join(scratchDirectory, name);
    const directory = join(scratch, "rootfs");
    await using stack = new AsyncDisposableStack();
    stack.defer(() => rm(scratch, { recursive: true, force: true }));
    const feed = stack.use(
      new LayerFeed(image.layers, () =>
        workers.startAssembler({
          name: `${name}-rootfs`,
          directory,
          layerCount: image.layers.length,
          limits: policy.limits,
          signal,
          onBytes: (done, total) => progress.bytes(done, total),
        }),
      ),
    );
    try {
      await mkdir(scratch, { recursive: true, mode: 0o700 });
      const storing = await this.#bring(progress, source, image, { name, scratch, directory, policy, feed }, signal);
      const each = storing.map((part) => Promise.resolve(part));
      stack.defer(async () => void (await Promise.allSettled(each))); // before what they read is removed
      await progress.move("extracting", "write");
      const stored = Promise.all(each);
      const digests = stored.then((parts) => parts.map((part) => part?.digest));
      digests.catch(() => undefined); // told by `write`
      const rootfs = await feed.write({
        isPart: storing.map((part) => part !== undefined),
        digests,
        format: recipe.format,
        identity: rootfsIdentity(recipe, policy.setuid),
        setuid: policy.setuid,
      });
      if (rootfs.droppedXattrs.length > 0) {
        await this.#say(build, `left out extended attributes: ${rootfs.droppedXattrs.join(", ")}`);
      }
      const { uid, gid, groups, home } = resolveUser(user, rootfs.passwd, rootfs.group);
      await progress.move("writing", "register");
      const made = { recipe, rootfs, parts: (await stored).filter((part) => part !== undefined), signatures };
      return {
        ...(await this.#register(progress, source, manifest, made, signal)),
        process: { argv, env: withHome(env, home), workingDir, uid, gid, groups, stopSignal, exposedPorts },
      };
    } catch (error) {
      // The next build fetches them anew.
      if (isServiceError(error, "LAYER_CACHE_DAMAGED")) await this.#deps.layers.forget(image.layers);
      throw error;
    }
  }

  /** Answers when every layer lies in `directory`: pulling ends with the last byte fetched, extracting with the last one unpacked. */
  async #bring(
    progress: StepProgress,
    source: ImageSource,
    image: ResolvedImage,
    place: {
      readonly name: string;
      readonly scratch: string;
      readonly directory: string;
      readonly policy: BuildPolicy;
      readonly feed: LayerFeed;
    },
    signal: AbortSignal,
  ): Promise<(Promise<StoredPart> | undefined)[]> {
    const { assets, layers: cache, workers, fetchQuota } = this.#deps;
    const { build } = progress;
    const { name, scratch, directory, policy, feed } = place;
    let missing = 0;
    let fetched = 0;
    let unpacked = 0;
    let isFetching = true;
    const show = (): void => progress.bytes(isFetching ? fetched : unpacked, missing);
    try {
      return await bringLayers({
        cache,
        workers,
        user: { tenantId: build.tenantId, source },
        layers: image.layers,
        name,
        scratchDirectory: scratch,
        directory: join(directory, "in"),
        limits: policy.limits,
        signal,
        say: (text) => this.#say(build, text),
        takesParts: build.request.format === "erofs",
        storePart: (layer, path) =>
          storePart(layer, path, { assets, cache, tenantId: build.tenantId, buildId: build.buildId, signal }),
        onHere: (digest, slot) => feed.here(digest, slot),
        onLeft: (left) => {
          // It takes the place of a process that unpacks: no more of them at once than before.
          if (left < parallelLayers) feed.start();
        },
        onMissing: (bytes) => {
          missing = bytes;
          return fetchQuota.admitBytes(build, bytes);
        },
        onFetched: (bytes) => {
          fetched = bytes;
          show();
        },
        onAllFetched: async () => {
          await progress.move("pulling", "extract");
          isFetching = false;
          show();
        },
        onUnpacked: (bytes) => {
          unpacked = bytes;
          if (!isFetching) show();
        },
      });
    } finally {
      await fetchQuota.settleBytes(build, fetched);
    }
  }

  /** Stores the root filesystem, then what is stated about it: without the statements nothing would boot it. */
  async #register(
    progress: StepProgress,
    source: ImageSource,
    { digest: imageDigest, manifest }: ResolvedManifest,
    made: {
      readonly recipe: RootfsRecipe;
      readonly rootfs: RootfsInFile;
      readonly parts: readonly StoredPart[];
      readonly signatures: AttestRequest["signatures"];
    },
    signal: AbortSignal,
  ): Promise<Omit<BuildResult, "process">> {
    const { assets, attester, clock } = this.#deps;
    const { build } = progress;
    const { recipe, rootfs, parts, signatures } = made;
    const { sizeBytes, imagePath: path } = rootfs;
    const partBytes = parts.reduce((sum, part) => sum + part.sizeBytes, 0);
    const { tenantId } = build;
    const { assetId, digest } = await assets.storeRootfs(
      {
        tenantId,
        uploadKey: rootfsUploadKey(build, parts),
        name: source.name.slice(0, 255),
        path,
        sizeBytes,
        labels: rootfsLabels(recipe),
        partIds: parts.map((part) => part.assetId),
      },
      signal,
      (done, total) => progress.bytes(partBytes + done, partBytes + total),
    );
    const statements = await attester.attest(
      {
        build,
        image: { manifestDigest: imageDigest, config: manifest.config, layers: manifest.layers },
        signatures,
        format: recipe.format,
        policyDigest: recipe.policyDigest,
        rootfs: { assetId, digest, sizeBytes },
        packages: rootfs.packages,
        startedAtMs: progress.startedAtMs,
        finishedAtMs: clock.nowMs(),
      },
      signal,
    );
    return { imageDigest, rootfsAssetId: assetId, rootfsBytes: partBytes + sizeBytes, ...statements };
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

  async #cached(
    build: Build,
    recipe: RootfsRecipe,
    signatures: AttestRequest["signatures"],
    signal: AbortSignal,
  ): Promise<BuildResult | undefined> {
    const { store, attester } = this.#deps;
    const key = rootfsKey(recipe);
    const cached = await store.findResult(build.tenantId, key);
    if (cached === undefined) return undefined;
    if (await attester.holds(build.tenantId, { ...cached, signatures }, signal)) return cached;
    await store.forgetResult(build.tenantId, key); // collected since: it is made again
    return undefined;
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

/** Of other parts it is another upload: the assets that an earlier try found may be gone. */
function rootfsUploadKey({ buildId }: Build, parts: readonly StoredPart[]): string {
  const hash = createHash("sha256").update(parts.map(({ assetId }) => assetId).join(" "));
  return `rootfs of ${buildId} from ${hash.digest("hex").slice(0, 16)}`;
}
