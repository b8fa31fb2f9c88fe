import assert from "node:assert/strict";
import { execFile } from "node:child_process";
import { existsSync } from "node:fs";
import { mkdtemp, readFile, rm, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { after, before, suite, test } from "node:test";
import { promisify } from "node:util";
import { digestOf } from "./registry/client.ts";
import { startGatewayTarget } from "./registry/targets.ts";

const run = promisify(execFile);
const missing = (...programs: readonly string[]): string | false => {
  const absent = programs.filter((program) => !existsSync(`/usr/bin/${program}`));
  return absent.length === 0 ? false : `not installed: ${absent.join(", ")}`;
};

let target: Awaited<ReturnType<typeof startGatewayTarget>>;
let dir: string;
/** Directory that `--cert-dir` is given: clients read `*.crt` in it as authorities. */
let certDir: string;

before(async () => {
  dir = await mkdtemp(join(tmpdir(), "registry-clients-"));
  certDir = join(dir, "certs");
  target = await startGatewayTarget();
  await run("mkdir", [certDir]);
  await writeFile(join(certDir, "ca.crt"), target.gateway.ca);
});
after(async () => {
  await target?.[Symbol.asyncDispose]();
  await rm(dir, { recursive: true, force: true });
});

const host = () => new URL(target.origin).host;
/** Logins go into a file of the test's own, where the clients look for them. */
const environment = () => ({ ...process.env, REGISTRY_AUTH_FILE: join(dir, "auth.json"), HOME: dir });

async function tool(program: string, ...args: readonly string[]): Promise<string> {
  const { stdout } = await run(program, args, { env: environment(), maxBuffer: 1 << 24 });
  return stdout;
}

/** An OCI layout with an image of two layers. */
async function layout(name: string): Promise<string> {
  const path = join(dir, name);
  await tool("umoci", "init", "--layout", path);
  await tool("umoci", "new", "--image", `${path}:v1`);
  for (const layer of ["one", "two"]) {
    const file = join(dir, `${name}-${layer}`);
    await writeFile(file, `${layer} of ${name}\n`.repeat(10_000));
    await tool("umoci", "insert", "--rootless", "--image", `${path}:v1`, file, `/${layer}`);
  }
  return path;
}

async function manifestDigestOf(path: string): Promise<string> {
  const index = JSON.parse(await readFile(join(path, "index.json"), "utf8")) as { manifests: { digest: string }[] };
  return index.manifests[0]?.digest ?? "";
}

suite("skopeo", { skip: missing("skopeo", "umoci") }, () => {
  test("logs in, pushes, inspects, lists, copies back and deletes, with equal digests", async () => {
    await tool("skopeo", "login", "--cert-dir", certDir, "-u", "unkey", "-p", target.gateway.key, host());
    const source = await layout("skopeo-source");
    const digest = await manifestDigestOf(source);
    const image = `docker://${host()}/team/by-skopeo:v1`;
    await tool("skopeo", "copy", "--dest-cert-dir", certDir, `oci:${source}:v1`, image);
    const seen = JSON.parse(await tool("skopeo", "inspect", "--cert-dir", certDir, image)) as Record<string, unknown>;
    assert.equal(seen["Digest"], digest);
    assert.equal((seen["Layers"] as string[]).length, 2);
    const raw = await tool("skopeo", "inspect", "--raw", "--cert-dir", certDir, image);
    assert.equal(digestOf(raw), digest);

    const back = join(dir, "skopeo-back");
    await tool("skopeo", "copy", "--src-cert-dir", certDir, image, `oci:${back}:v1`);
    assert.equal(await manifestDigestOf(back), digest);

    // Another repository of the same tenant: its layers are mounted, and by its digest it is the same image.
    const other = `docker://${host()}/team/copied:v2`;
    await tool("skopeo", "copy", "--src-cert-dir", certDir, "--dest-cert-dir", certDir, image, other);
    const pinned = `docker://${host()}/team/copied@${digest}`;
    await tool("skopeo", "inspect", "--cert-dir", certDir, pinned);
    const tags = await tool("skopeo", "list-tags", "--cert-dir", certDir, `docker://${host()}/team/copied`);
    assert.deepEqual((JSON.parse(tags) as { Tags: string[] }).Tags, ["v2"]);

    await tool("skopeo", "delete", "--cert-dir", certDir, image);
    await assert.rejects(tool("skopeo", "inspect", "--cert-dir", certDir, image), /manifest unknown/);
    await tool("skopeo", "inspect", "--cert-dir", certDir, other);
  });

  test("pushes Docker's own manifest format and an index", async () => {
    const source = await layout("formats-source");
    const login = ["--dest-creds", `unkey:${target.gateway.key}`, "--dest-cert-dir", certDir];
    const image = `docker://${host()}/formats:docker`;
    await tool("skopeo", "copy", "--format", "v2s2", ...login, `oci:${source}:v1`, image);
    const read = ["--creds", `unkey:${target.gateway.key}`, "--cert-dir", certDir];
    const raw = JSON.parse(await tool("skopeo", "inspect", "--raw", ...read, image)) as Record<string, unknown>;
    assert.equal(raw["mediaType"], "application/vnd.docker.distribution.manifest.v2+json");
  });

  test("is told what is wrong with its login", async () => {
    const login = ["--creds", `unkey:unkey_${"0".repeat(64)}`, "--cert-dir", certDir];
    await assert.rejects(
      tool("skopeo", "inspect", ...login, `docker://${host()}/team/copied:v2`),
      /unauthorized|authentication required|API key is not known/i,
    );
  });
});

suite("buildah", {
  skip: missing("buildah", "skopeo", "umoci") || (process.getuid?.() === 0 ? false : "needs root"),
}, () => {
  const buildah = (...args: readonly string[]) =>
    tool(
      "buildah",
      "--storage-driver=vfs",
      "--root",
      join(dir, "storage"),
      "--runroot",
      join(dir, "run"),
      "--registries-conf",
      "/dev/null",
      ...args,
    );
  test("logs in, pushes what it built and pulls it again, with equal digests", async () => {
    await writeFile(join(dir, "policy.json"), JSON.stringify({ default: [{ type: "insecureAcceptAnything" }] }));
    const policy = ["--signature-policy", join(dir, "policy.json")];
    await tool("buildah", "login", "--cert-dir", certDir, "-u", "unkey", "-p", target.gateway.key, host());
    const container = (await buildah("from", ...policy, "scratch")).trim();
    const file = join(dir, "program");
    await writeFile(file, "#!/bin/sh\necho hello\n");
    await buildah("copy", container, file, "/program");
    await buildah("config", "--cmd", "/program", container);
    await buildah("commit", ...policy, container, "built:latest");
    const image = `${host()}/by-buildah:latest`;
    const digestFile = join(dir, "digest");
    await buildah(
      "push",
      ...policy,
      "--cert-dir",
      certDir,
      "--digestfile",
      digestFile,
      "built:latest",
      `docker://${image}`,
    );
    const pushed = (await readFile(digestFile, "utf8")).trim();
    const raw = await tool("skopeo", "inspect", "--raw", "--cert-dir", certDir, `docker://${image}`);
    assert.equal(digestOf(raw), pushed);
    await buildah("rmi", "--all", "--force");
    const id = (await buildah("pull", ...policy, "--cert-dir", certDir, `docker://${image}`)).trim();
    const pulled = JSON.parse(await buildah("inspect", "--type", "image", id)) as Record<string, unknown>;
    assert.equal(pulled["FromImageDigest"], pushed);
    await buildah("rmi", "--all", "--force");
  });
});

test("curl pushes and pulls over both versions of HTTP", { skip: missing("curl") }, async () => {
  const file = join(dir, "curl-blob");
  await writeFile(file, Buffer.alloc(2_000_000, "curl"));
  const digest = digestOf(await readFile(file));
  const config = join(dir, "curlrc"); // the key does not show in the list of processes
  await writeFile(
    config,
    `cacert = "${join(certDir, "ca.crt")}"\nuser = "unkey:${target.gateway.key}"\nsilent\nfail\n`,
  );
  for (const version of ["--http1.1", "--http2"]) {
    const repository = `${target.origin}/v2/by-curl/v${version.slice(6, 7)}`;
    const upload = `${repository}/blobs/uploads/?digest=${digest}`;
    await tool("curl", "-K", config, version, "-X", "POST", "--data-binary", `@${file}`, upload);
    const back = join(dir, "curl-back");
    await tool("curl", "-K", config, version, "-o", back, `${repository}/blobs/${digest}`);
    assert.equal(digestOf(await readFile(back)), digest);
  }
});
