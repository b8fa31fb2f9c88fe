import { mkdtemp, readdir, rm } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import type { TestContext } from "node:test";
import type { MessageInitShape } from "@bufbuild/protobuf";
import type { Client } from "@connectrpc/connect";
import { AssetService } from "@unkey/api/asset";
import { type Build, BuilderService, type BuildImageRequestSchema, BuildState } from "@unkey/api/builder";
import type { SigningKey } from "@unkey/attest";
import { makeSigningKey } from "@unkey/attest/testing";
import { newId, systemClock, type TenantId } from "@unkey/base";
import { createLogger, Metrics } from "@unkey/daemon";
import { exportLayoutArchive } from "@unkey/oci";
import { inMemoryClient } from "@unkey/rpc";
import { PolicyFile } from "../src/adapters/policy-file.ts";
import { RpcAssetRegistry } from "../src/adapters/rpc-asset-registry.ts";
import { RpcStatementAssets } from "../src/adapters/rpc-statement-assets.ts";
import { SigningAttester } from "../src/attest/signing-attester.ts";
import { BuildVerifier } from "../src/attest/verify-build.ts";
import { type BuilderParts, openBuilder } from "../src/builder.ts";
import type { RegistrySettings } from "../src/registry-settings.ts";
import { MemoryAssets } from "./memory-assets.ts";

/** Why what reads images cannot be confined here; false when it can. */
export const needsRoot: false | string = process.getuid?.() !== 0 && "root is needed to confine processes";

export interface BuilderOptions extends Partial<Omit<BuilderParts, "assets" | "rules">> {
  readonly directory?: string;
  readonly layerCacheBytes?: number;
  readonly concurrency?: number;
  readonly buildTimeoutMs?: number;
  readonly uploadMaxBytes?: number;
  readonly uploadLifetimeMs?: number;
  readonly policyFile?: string;
  /** Another for each builder unless told. */
  readonly signer?: SigningKey;
  readonly registries?: Partial<RegistrySettings>;
}

export type Builder = Awaited<ReturnType<typeof startBuilder>>;

/** A builder with its own files and an asset store in memory, called through its RPCs. */
export async function startBuilder(context: TestContext, options: BuilderOptions = {}) {
  const directory = options.directory ?? (await temporary(context));
  const lines: string[] = [];
  const stopping = new AbortController();
  const abort = new AbortController();
  const assets = new MemoryAssets();
  const assetClient = {
    client: () => inMemoryClient(AssetService, { routes: assets.routes, caller: { service: "builderd" } }),
  };
  const rules = new PolicyFile(options.policyFile, createLogger({ level: "trace", write: (line) => lines.push(line) }));
  const signer = options.signer ?? makeSigningKey();
  const trusted = {
    assets: new RpcStatementAssets(assetClient.client(), systemClock),
    keys: [signer.verificationKey],
    builderId: "spiffe://unkey.test/builderd",
  };
  const builder = await openBuilder(
    {
      dataDir: directory,
      concurrency: options.concurrency ?? 3,
      buildTimeoutMs: options.buildTimeoutMs ?? 60_000,
      uploadMaxBytes: options.uploadMaxBytes ?? 1 << 26,
      uploadLifetimeMs: options.uploadLifetimeMs ?? 60_000,
      plainHttpRegistries: [],
      registries: {
        mirrors: new Map(),
        caCertificates: [],
        credentialFile: undefined,
        ...options.registries,
      },
      retentionMs: 30 * 86_400_000,
      keptPerTenant: 1000,
      layerCacheBytes: options.layerCacheBytes ?? 1 << 28,
      workerMemoryBytes: 1 << 29,
      workerDiskBytes: 1 << 30,
      workerUidBase: 0x6810_0000,
    },
    {
      log: createLogger({ level: "trace", write: (line) => lines.push(line) }),
      metrics: new Metrics(),
      stopping: stopping.signal,
      abort: abort.signal,
    },
    {
      rules,
      attester: new SigningAttester({ ...trusted, key: signer, version: "test" }),
      verifier: new BuildVerifier({ ...trusted, rules }),
      logins: options.logins ?? { find: async () => undefined },
      assets: new RpcAssetRegistry(
        // A channel in memory offers what the registry uses: clients and a ping.
        { ...assetClient, ping: async () => {}, [Symbol.asyncDispose]: async () => {} } as never,
        systemClock,
      ),
      ...(options.workers === undefined ? {} : { workers: options.workers }),
      ...(options.workerProgram === undefined ? {} : { workerProgram: options.workerProgram }),
      ...(options.limits === undefined ? {} : { limits: options.limits }),
    },
  );
  let closed: Promise<void> | undefined;
  const close = () =>
    (closed ??= (async () => {
      stopping.abort(new Error("stopping"));
      abort.abort(new Error("at once"));
      await builder[Symbol.asyncDispose]();
    })());
  atEnd(context, close);
  return {
    directory,
    assets,
    lines,
    close,
    /** The RPCs as gatewayd calls them for a tenant. */
    as: (tenantId: TenantId): Client<typeof BuilderService> =>
      inMemoryClient(BuilderService, {
        routes: builder.routes,
        caller: {
          service: "gatewayd",
          principal: { tenantId, subject: "key", roles: [], requestId: newId("req") },
        },
      }),
    /** Names left in the scratch directory. */
    scratch: () => readdir(join(directory, "scratch")).catch(() => [] as string[]),
  };
}

const cleanups = new WeakMap<TestContext, AsyncDisposableStack>();

/** Runs `cleanup` when the test has ended, the last registered first: node:test's own hooks run in the other order. */
export function atEnd(context: TestContext, cleanup: () => Promise<void>): void {
  let stack = cleanups.get(context);
  if (stack === undefined) {
    stack = new AsyncDisposableStack();
    cleanups.set(context, stack);
    const made = stack;
    context.after(() => made.disposeAsync());
  }
  stack.defer(cleanup);
}

export async function temporary(context: TestContext): Promise<string> {
  const directory = await mkdtemp(join(tmpdir(), "builderd-"));
  atEnd(context, () => rm(directory, { recursive: true, force: true }));
  return directory;
}

type Request = Omit<MessageInitShape<typeof BuildImageRequestSchema>, "$typeName" | "tenantId">;

/** Builds and follows to the end. */
export async function build(builder: Builder, tenantId: TenantId, request: Request): Promise<Build> {
  const client = builder.as(tenantId);
  const started = await client.buildImage({ idempotencyKey: newId("op"), ...request, tenantId });
  let last = started;
  for await (last of client.watchBuild({ tenantId, buildId: started.buildId }));
  return last;
}

export function fromRegistry(reference: string): Pick<Request, "image"> {
  return { image: { source: { case: "reference", value: reference } } };
}

export function fromUpload(uploadId: string): Pick<Request, "image"> {
  return { image: { source: { case: "uploadId", value: uploadId } } };
}

/** Uploads a layout's archive in chunks as the gateway sends them. */
export async function upload(builder: Builder, tenantId: TenantId, layout: string, digest = "", name = "") {
  return builder.as(tenantId).uploadImage(uploadParts(tenantId, exportLayoutArchive(layout), digest, name));
}

export async function* uploadParts(tenantId: TenantId, chunks: AsyncIterable<Uint8Array>, digest = "", name = "") {
  yield { part: { case: "header" as const, value: { tenantId, digest, name } } };
  for await (const value of chunks) yield { part: { case: "chunk" as const, value } };
}

/** Names of the states that a build went through. */
export function statesOf({ steps }: Build): string[] {
  return steps.map(({ state }) => Object.entries(BuildState).find(([, value]) => value === state)?.[0] ?? "");
}
