import { AssetService } from "@unkey/api/asset";
import { systemClock } from "@unkey/base";
import type { DaemonContext } from "@unkey/daemon";
import { listenRpc, openIdentity, openRpcChannel } from "@unkey/rpc";
import packageJson from "../package.json" with { type: "json" };
import { CredentialFile } from "./adapters/credential-file.ts";
import { PolicyFile } from "./adapters/policy-file.ts";
import { RpcAssetRegistry } from "./adapters/rpc-asset-registry.ts";
import { RpcStatementAssets } from "./adapters/rpc-statement-assets.ts";
import { SigningAttester } from "./attest/signing-attester.ts";
import { BuildVerifier } from "./attest/verify-build.ts";
import { type BuilderParts, openBuilder } from "./builder.ts";
import type { Config } from "./config.ts";

/** `overrides` are for tests. */
export async function startBuilderd(
  config: Config,
  context: DaemonContext,
  overrides: Pick<BuilderParts, "workerProgram"> = {},
): Promise<AsyncDisposable> {
  const { log, metrics, health, abort } = context;
  await using stack = new AsyncDisposableStack(); // closes in reverse order, also when a later line throws
  const identity = stack.adopt(openIdentity(config.rpc, context), (source) => source[Symbol.dispose]());
  const channel = stack.use(openRpcChannel({ peer: "assetmanagerd", address: config.assetManager, identity, metrics }));
  const assets = new RpcAssetRegistry(channel, systemClock);
  health.dependency("assetmanagerd", () => assets.check());
  const rules = new PolicyFile(config.policyFile, log);
  health.dependency("build-policy", () => rules.check(), { required: false });
  const logins = new CredentialFile(config.registries.credentialFile, log);
  health.dependency("registry-logins", () => logins.check(), { required: false });
  const statements = new RpcStatementAssets(channel.client(AssetService), systemClock);
  const { provenanceKey, provenanceKeys } = config;
  const builderId = `spiffe://${identity.current.id.trustDomain}/builderd`;
  const trusted = { assets: statements, keys: provenanceKeys, builderId };
  const attester = new SigningAttester({ ...trusted, key: provenanceKey, version: packageJson.version });
  const verifier = new BuildVerifier({ ...trusted, rules });
  const { algorithm, id } = provenanceKey.verificationKey;
  health.layer("provenance", { active: true, detail: `signed with ${algorithm}, key ${id}` });
  const builder = stack.use(
    await openBuilder(config, context, { assets, attester, verifier, rules, logins, ...overrides }),
  );
  for (const [name, layer] of Object.entries(builder.layers)) health.layer(name, layer);
  const { host, port } = config.rpc;
  const server = stack.use(await listenRpc({ routes: builder.routes, identity, host, port, log, metrics, abort }));
  context.announce("rpc", server.host, server.port);
  return stack.move(); // everything is up: the caller owns it now
}
