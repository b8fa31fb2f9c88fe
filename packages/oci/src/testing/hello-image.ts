import { existsSync } from "node:fs";
import type { Digest } from "../digest.ts";
import { assembleImage, type ImageFile, type ImageRunConfig } from "../layout/assemble-image.ts";
import type { Platform } from "../platform.ts";

/** Debian's busybox-static. */
export const busyboxPath = "/bin/busybox";

/** Why an image with a shell cannot be made here; false when it can: for the `skip` of a test. */
export const needsBusybox: false | string = existsSync(busyboxPath) ? false : "busybox-static is not installed";

/** A tree with a shell and an account; what a test image usually starts from. */
const busyboxTree: readonly ImageFile[] = [
  { path: "bin", directory: true },
  { path: "bin/busybox", contentFrom: busyboxPath, mode: 0o755 },
  ...["sh", "httpd", "cat", "echo", "env", "id", "ls", "sleep", "wget", "dd", "kill", "sync", "true", "false"].map(
    (applet) => ({ path: `bin/${applet}`, linkTo: "busybox" }),
  ),
  { path: "etc", directory: true },
  { path: "etc/passwd", content: "root:x:0:0:root:/root:/bin/sh\nweb:x:1000:1000::/srv:/bin/sh\n" },
  { path: "etc/group", content: "root:x:0:\nweb:x:1000:\nlogs:x:1001:web\n" },
  { path: "srv", directory: true },
  { path: "tmp", directory: true, mode: 0o1777 },
];

export interface HelloImageOptions {
  /** Made by the call; must not exist. */
  readonly directory: string;
  /** What `GET /` answers. */
  readonly text?: string;
  readonly config?: ImageRunConfig;
  readonly files?: readonly ImageFile[];
  readonly platform?: Platform;
}

/** An OCI layout of a web server on port 8080 that runs as user `web`. */
export async function helloImage(options: HelloImageOptions): Promise<{ readonly manifestDigest: Digest }> {
  const { directory, text = "hello\n", config, files = [], platform } = options;
  return assembleImage({
    directory,
    ...(platform === undefined ? {} : { platform }),
    files: [...busyboxTree, { path: "srv/index.html", content: text, uid: 1000, gid: 1000 }, ...files],
    config: {
      Entrypoint: ["/bin/httpd", "-f", "-p", "8080", "-h", "/srv"],
      Env: ["PATH=/bin"],
      User: "web",
      WorkingDir: "/srv",
      StopSignal: "SIGINT",
      ExposedPorts: { "8080/tcp": {} },
      ...config,
    },
  });
}
