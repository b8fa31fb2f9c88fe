import { readFile } from "node:fs/promises";
import { assembleImage } from "@unkey/oci";

const page = `<!doctype html>
<title>Hello</title>
<h1>Hello from a microVM</h1>
<p>This page comes from busybox httpd inside its own kernel.</p>
`;

/** Writes an OCI layout into `directory`: Debian's static busybox as a web server on port 8080. */
export async function assembleHello(directory: string): Promise<{ manifestDigest: string }> {
  const busybox = await readFile("/bin/busybox");
  return assembleImage({
    directory,
    files: [
      { path: "bin/busybox", mode: 0o755, content: busybox },
      { path: "www/index.html", mode: 0o644, content: page },
      { path: "www/load.bin", mode: 0o644, content: new Uint8Array(64 * 1024) },
    ],
    config: {
      Entrypoint: ["/bin/busybox", "httpd", "-f", "-v", "-p", "8080", "-h", "/www"],
      ExposedPorts: { "8080/tcp": {} },
      User: "65534:65534",
    },
  });
}
