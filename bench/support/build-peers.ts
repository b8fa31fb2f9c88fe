import { execFile } from "node:child_process";
import { mkdtemp, rm } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { Readable } from "node:stream";
import { pipeline } from "node:stream/promises";
import { promisify } from "node:util";
import { createGunzip } from "node:zlib";
import { hostPlatform, parseImageReference, RegistryClient, resolveManifest, streamLayers } from "@unkey/oci";

const run = promisify(execFile);

/** What was there before: three tools one after another, from the registry to an ext4 image. Seconds. */
export async function skopeoUmociMke2fs(reference: string, archiveBytes: number): Promise<number> {
  const directory = await mkdtemp(join(tmpdir(), "unkey-bench-peer-"));
  try {
    const startMs = performance.now();
    const layout = `${join(directory, "layout")}:x`;
    await run("skopeo", ["copy", "--quiet", "--src-tls-verify=false", `docker://${reference}`, `oci:${layout}`]);
    await run("umoci", ["unpack", "--image", layout, join(directory, "bundle")]);
    // Room for the files, block by block, and an inode for each.
    const kib = Math.ceil((archiveBytes * 1.3) / 1024);
    const rootfs = join(directory, "bundle/rootfs");
    await run("mke2fs", ["-q", "-t", "ext4", "-i", "8192", "-d", rootfs, join(directory, "rootfs.ext4"), `${kib}k`]);
    return (performance.now() - startMs) / 1000;
  } finally {
    await rm(directory, { recursive: true, force: true });
  }
}

/**
 * The least that any builder must do: our own client fetches the layers, as many at once as builderd does and with their digests
 * checked, and zlib decompresses them into nothing. Seconds.
 */
export async function downloadAndDecompress(reference: string, parallel: number): Promise<number> {
  const startMs = performance.now();
  const { signal } = new AbortController();
  await using client = new RegistryClient();
  const source = client.image(parseImageReference(reference), {});
  const { manifest } = await resolveManifest(source, hostPlatform(), signal);
  await streamLayers(source, manifest.layers, { signal, parallel }, async (_, chunks) => {
    await pipeline(Readable.from(chunks), createGunzip({ chunkSize: 1 << 18 }), async (bytes) => {
      for await (const _ of bytes);
    });
  });
  return (performance.now() - startMs) / 1000;
}
