import { execFile } from "node:child_process";
import { mkdtemp, rm } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { promisify } from "node:util";
import { parseImageReference } from "@unkey/oci";

const run = promisify(execFile);
const manifestType = "application/vnd.oci.image.manifest.v1+json";

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
 * What any builder must do at least: curl fetches the layers, as many at once as builderd does, and gzip decompresses them into
 * nothing. Seconds.
 */
export async function downloadAndDecompress(reference: string, parallel: number): Promise<number> {
  const { registry, repository, tag } = parseImageReference(reference);
  const startMs = performance.now();
  const base = `http://${registry}/v2/${repository}`;
  const get = async (path: string) =>
    (await run("curl", ["-fsS", "-H", `Accept: ${manifestType}`, `${base}/${path}`])).stdout;
  const { layers } = JSON.parse(await get(`manifests/${tag}`)) as { layers: { digest: string }[] };
  const fetchNext = async () => {
    for (let layer = layers.shift(); layer !== undefined; layer = layers.shift()) {
      const url = `${base}/blobs/${layer.digest}`;
      await run("bash", ["-o", "pipefail", "-c", 'curl -fsS "$1" | gzip -dc >/dev/null', "-", url]);
    }
  };
  await Promise.all(Array.from({ length: parallel }, fetchNext));
  return (performance.now() - startMs) / 1000;
}
