import assert from "node:assert/strict";
import { mkdtemp, readdir, rm } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { type TestContext, test } from "node:test";
import { systemClock } from "@unkey/base";
import { request } from "undici";
import { resolveImage, resolveManifest } from "../image-source.ts";
import { defaultImageLimits } from "../layer/limits.ts";
import { assembleImage } from "../layout/assemble-image.ts";
import { hostPlatform } from "../platform.ts";
import { parseImageReference } from "../reference.ts";
import { fetchLayers } from "../testing/fetch-layers.ts";
import { fails } from "../testing/scripted-registry.ts";
import { makeCertificate, needsOpenssl } from "../testing/test-certificates.ts";
import { needsRegistry, pushLayout, startTestRegistry, testLogin } from "../testing/test-registry.ts";
import { startTokenServer } from "../testing/token-server.ts";
import { type ImageOptions, RegistryClient, type RegistryClientOptions } from "./registry-client.ts";

const { signal } = new AbortController();
const skip = needsRegistry === false ? needsOpenssl : needsRegistry;
const local = "IP:127.0.0.1";

async function temporary(context: TestContext): Promise<string> {
  const directory = await mkdtemp(join(tmpdir(), "oci-debian-registry-"));
  context.after(() => rm(directory, { recursive: true, force: true }));
  return directory;
}

/** A registry's storage that holds `team/app:v1`. */
async function stored(directory: string): Promise<string> {
  const storage = join(directory, "storage");
  const layout = join(directory, "layout");
  await assembleImage({
    directory: layout,
    files: [{ path: "x", content: "y".repeat(10_000) }],
    config: { Cmd: ["/x"] },
  });
  await using registry = await startTestRegistry({ storage });
  await pushLayout({ layout, host: registry.host, repository: "team/app", tag: "v1" });
  return storage;
}

async function pull(directory: string, host: string, client: RegistryClientOptions, options: ImageOptions = {}) {
  await using registries = new RegistryClient(client);
  const source = registries.image(parseImageReference(`${host}/team/app:v1`), options);
  const resolved = await resolveManifest(source, hostPlatform(), signal);
  const image = await resolveImage(source, resolved, hostPlatform(), defaultImageLimits, signal);
  const to = await mkdtemp(join(directory, "pulled-"));
  await fetchLayers(source, image, to, { signal });
  return await readdir(to);
}

test("a registry with TLS and a password, its authority told", { skip }, async (context) => {
  const directory = await temporary(context);
  const [authority, other] = [makeCertificate(directory, "authority"), makeCertificate(directory, "other")];
  const tls = makeCertificate(directory, "registry", { issuer: authority, names: local });
  const storage = await stored(directory);
  await using registry = await startTestRegistry({ storage, tls, login: true });
  const trusting = { caCertificates: [authority.certificatePem] };
  assert.equal((await pull(directory, registry.host, trusting, { credentials: testLogin })).length, 1);
  await assert.rejects(pull(directory, registry.host, trusting), fails("REGISTRY_CREDENTIALS_REQUIRED", /login/));
  for (const client of [{}, { caCertificates: [other.certificatePem] }]) {
    await assert.rejects(
      pull(directory, registry.host, client, { credentials: testLogin }),
      fails("REGISTRY_CERTIFICATE_UNTRUSTED", /not trusted here \((UNABLE_TO_VERIFY|UNABLE_TO_GET_ISSUER|SELF_SIGNED)/),
    );
  }
});

test("a certificate for another name is refused, of an authority that is trusted too", { skip }, async (context) => {
  const directory = await temporary(context);
  const authority = makeCertificate(directory, "authority");
  const tls = makeCertificate(directory, "registry", { issuer: authority, names: "DNS:elsewhere.example" });
  await using registry = await startTestRegistry({ tls });
  await assert.rejects(
    pull(directory, registry.host, { caCertificates: [authority.certificatePem] }),
    fails("REGISTRY_CERTIFICATE_UNTRUSTED", /ALTNAME/),
  );
});

test("bearer tokens: one serves a pull, one that ends meanwhile is renewed", { skip }, async (context) => {
  const directory = await temporary(context);
  const signer = makeCertificate(directory, "signer");
  const storage = await stored(directory);
  // The first ends soon, though the server says five minutes; the others last.
  await using tokens = await startTokenServer(signer, {
    lifeSeconds: (count) => (count === 0 ? 3 : 300),
    login: testLogin,
  });
  await using registry = await startTestRegistry({ storage, tokens: { ...tokens, ...signer } });
  await using registries = new RegistryClient();
  const source = registries.image(parseImageReference(`${registry.host}/team/app:v1`), { credentials: testLogin });
  const resolved = await resolveManifest(source, hostPlatform(), signal);
  const image = await resolveImage(source, resolved, hostPlatform(), defaultImageLimits, signal);
  assert.equal(tokens.issued.length, 1);

  const taken = async (): Promise<boolean> => {
    const headers = { authorization: `Bearer ${tokens.issued[0]}` };
    const response = await request(`http://${registry.host}/v2/team/app/tags/list`, { headers });
    await response.body.dump();
    return response.statusCode !== 401;
  };
  while (await taken()) await systemClock.sleep(100, signal);
  await fetchLayers(source, image, directory, { signal });
  assert.equal(tokens.issued.length, 2);
  assert.equal(await source.canRead(image.layers[0]!.descriptor, signal), true);
  assert.equal(tokens.issued.length, 2);

  await assert.rejects(
    pull(directory, registry.host, {}, { credentials: { ...testLogin, password: "wrong" } }),
    fails("REGISTRY_CREDENTIALS_REJECTED", /refuses the user name or password/),
  );
});

test("a registry that does not take the token server's key denies access", { skip }, async (context) => {
  const directory = await temporary(context);
  const [signer, trusted] = [makeCertificate(directory, "signer"), makeCertificate(directory, "trusted")];
  const storage = await stored(directory);
  await using tokens = await startTokenServer(signer, { lifeSeconds: () => 300 });
  await using registry = await startTestRegistry({ storage, tokens: { ...tokens, ...trusted } });
  await assert.rejects(pull(directory, registry.host, {}), fails("REGISTRY_CREDENTIALS_REQUIRED", /login/));
});

test("a mirror and an origin, both real", { skip }, async (context) => {
  const directory = await temporary(context);
  const storage = await stored(directory);
  await using mirror = await startTestRegistry({ storage });
  await using origin = await startTestRegistry({ storage });
  const mirrors = new Map([[origin.host, [{ host: mirror.host, prefix: "", resolvesTags: false }]]]);
  assert.equal((await pull(directory, origin.host, { mirrors })).length, 1);
  await Promise.all([mirror.settled(), origin.settled()]);
  assert.equal(origin.blobReads(), 0);
  assert.equal(mirror.blobReads(), 2); // config and layer
});
