import { execFileSync } from "node:child_process";
import { copyFileSync, existsSync, mkdirSync, symlinkSync, writeFileSync } from "node:fs";
import { dirname, join } from "node:path";
import { busyboxPath } from "@unkey/oci/testing";

/**
 * Images made by other people's tools, so that nothing of ours has had a hand in what is deployed: layers by GNU tar or
 * mmdebstrap, manifests by umoci, transport and compression by skopeo.
 */

export interface RunConfig {
  readonly entrypoint: readonly string[];
  readonly port: number;
  readonly user?: string;
}

/** An OCI layout at `directory` of these uncompressed layers, lowest first. */
export function layoutOf(directory: string, layers: readonly string[], config: RunConfig): void {
  const image = `${directory}:latest`;
  run("umoci", ["init", "--layout", directory]);
  run("umoci", ["new", "--image", image]);
  for (const layer of layers) run("umoci", ["raw", "add-layer", "--image", image, layer]);
  run("umoci", [
    "config",
    "--image",
    image,
    ...config.entrypoint.map((word) => `--config.entrypoint=${word}`),
    `--config.exposedports=${config.port}/tcp`,
    ...(config.user === undefined ? [] : [`--config.user=${config.user}`]),
  ]);
}

/** Archives a folder as a layer, extended attributes included. */
export function layerOf(directory: string, path: string): string {
  run("tar", ["--create", "--file", path, "--xattrs", "--xattrs-include=*", "--numeric-owner", "-C", directory, "."]);
  return path;
}

/** Sends a layout to a registry on loopback, compressing its layers. */
export function push(directory: string, reference: string, compression: "gzip" | "zstd"): void {
  const format = ["--dest-compress", "--dest-compress-format", compression];
  run("skopeo", [
    "copy",
    "--quiet",
    ...format,
    "--dest-tls-verify=false",
    `oci:${directory}:latest`,
    `docker://${reference}`,
  ]);
}

/** What a registry on loopback serves as the manifest of an image. */
export function manifestOf(reference: string): { readonly layers: readonly { readonly mediaType: string }[] } {
  return JSON.parse(run("skopeo", ["inspect", "--raw", "--tls-verify=false", `docker://${reference}`])) as ReturnType<
    typeof manifestOf
  >;
}

/** Applets of busybox that a folder gets as links, beside the program itself. */
const applets = ["sh", "httpd", "id", "cat", "ls", "uname", "stat", "test"];

/** A tree with a shell, accounts, and a page whose text a script of the guest makes. */
export function busyboxTree(directory: string, script: string): string {
  copyInto(directory, busyboxPath, "bin/busybox");
  for (const applet of applets) symlinkSync("busybox", join(directory, "bin", applet));
  writeInto(directory, "etc/passwd", "root:x:0:0::/:/bin/sh\nweb:x:1000:1000::/srv:/bin/sh\n");
  writeInto(directory, "etc/group", "root:x:0:\nweb:x:1000:\nlogs:x:1001:web\n");
  // httpd runs what it finds below cgi-bin.
  writeInto(
    directory,
    "srv/cgi-bin/index.cgi",
    `#!/bin/sh\nprintf "content-type: text/plain\\r\\n\\r\\n"\n${script}\n`,
    0o755,
  );
  return directory;
}

export function copyInto(directory: string, from: string, path: string): string {
  const to = join(directory, path);
  mkdirSync(dirname(to), { recursive: true });
  copyFileSync(from, to);
  return to;
}

export function writeInto(directory: string, path: string, content: string | Uint8Array, mode = 0o644): string {
  const to = join(directory, path);
  mkdirSync(dirname(to), { recursive: true });
  writeFileSync(to, content, { mode });
  return to;
}

export function run(program: string, args: readonly string[]): string {
  return execFileSync(program, args, { encoding: "utf8", stdio: ["ignore", "pipe", "pipe"], maxBuffer: 64 * 2 ** 20 });
}

const programs = ["umoci", "skopeo", "mmdebstrap", "setcap", "tar"];

/** Why these images cannot be made here, false when they can. */
export const needsImageTools: string | false = (() => {
  const folders = ["/usr/bin", "/usr/sbin", "/bin", "/sbin"];
  const missing = programs.filter((program) => !folders.some((folder) => existsSync(join(folder, program))));
  return missing.length > 0 && `missing on this host: ${missing.join(", ")}`;
})();
