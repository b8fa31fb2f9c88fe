import { createHash } from "node:crypto";
import { readFile } from "node:fs/promises";
import { createServer } from "node:http";
import type { AddressInfo } from "node:net";
import { join } from "node:path";
import type { TestContext } from "node:test";
import { assembleImage, hostPlatform } from "@unkey/oci";
import { atEnd, temporary } from "./harness.ts";

export interface LayeredImage {
  readonly reference: string;
  /** Of the layers, lowest first. */
  readonly digests: readonly string[];
}

interface Blob {
  readonly bytes: Buffer;
  readonly mediaType: string;
}

const manifestType = "application/vnd.oci.image.manifest.v1+json";
const sha256 = (bytes: Buffer): string => `sha256:${createHash("sha256").update(bytes).digest("hex")}`;

/** A registry in this process whose blobs can be counted, held back and forbidden. Layers are not compressed. */
export async function startLayeredRegistry(context: TestContext) {
  const blobs = new Map<string, Blob>();
  const tags = new Map<string, string>();
  /** GETs of each blob that were answered with its bytes. */
  const reads = new Map<string, number>();
  const heldBack = new Map<string, { readonly gate: Promise<void>; readonly asked: () => void }>();
  /** Answers whether a login (the Authorization header) may have a blob. */
  const rules = { mayRead: (_login: string, _digest: string): boolean => true };

  const server = createServer((request, response) => {
    void (async () => {
      if (request.url === "/v2/") return response.end();
      const [, , repository = "", kind, name = ""] = (request.url ?? "").split("/");
      const digest = kind === "manifests" ? (tags.get(`${repository}:${name}`) ?? name) : name;
      const blob = blobs.get(digest);
      const login = request.headers.authorization ?? "";
      if (login === "" && !rules.mayRead(login, digest)) {
        return response.writeHead(401, { "www-authenticate": 'Basic realm="test"' }).end();
      }
      if (blob === undefined || !rules.mayRead(login, digest)) return response.writeHead(404).end();
      response.setHeader("content-type", blob.mediaType).setHeader("content-length", blob.bytes.length);
      if (request.method === "HEAD") return response.end();
      const hold = heldBack.get(digest);
      hold?.asked();
      await hold?.gate;
      reads.set(digest, (reads.get(digest) ?? 0) + 1);
      return response.end(blob.bytes);
    })();
  });
  await new Promise<void>((resolve) => server.listen(0, "127.0.0.1", resolve));
  atEnd(context, async () => {
    server.closeAllConnections();
    server.close();
  });
  const host = `127.0.0.1:${(server.address() as AddressInfo).port}`;
  const keep = (bytes: Buffer, mediaType: string) => {
    const digest = sha256(bytes);
    blobs.set(digest, { bytes, mediaType });
    return { mediaType, digest, size: bytes.length };
  };

  return {
    host,
    reads,
    rules,
    /** An image with one layer for each content, in which that is the file `app-<index>`; the same content again is the same layer. */
    async add(repository: string, contents: readonly Buffer[]): Promise<LayeredImage> {
      const directory = await temporary(context);
      const layers = [];
      const diffIds = [];
      for (const [index, content] of contents.entries()) {
        const layout = join(directory, String(index));
        const files = [{ path: `app-${contents.indexOf(content)}`, content }];
        const { manifestDigest } = await assembleImage({ directory: layout, files, config: {} });
        const blob = (digest: string) => readFile(join(layout, "blobs/sha256", digest.slice(7)));
        const manifest = JSON.parse((await blob(manifestDigest)).toString()) as {
          layers: { digest: string; mediaType: string }[];
        };
        const [layer] = manifest.layers;
        if (layer === undefined) throw new Error("an image without a layer");
        layers.push(keep(await blob(layer.digest), layer.mediaType));
        diffIds.push(layer.digest);
      }
      const { os, architecture } = hostPlatform();
      const config = keep(
        Buffer.from(
          JSON.stringify({
            os,
            architecture,
            config: { Cmd: ["/app-0"] },
            rootfs: { type: "layers", diff_ids: diffIds },
          }),
        ),
        "application/vnd.oci.image.config.v1+json",
      );
      const manifest = keep(
        Buffer.from(JSON.stringify({ schemaVersion: 2, mediaType: manifestType, config, layers })),
        manifestType,
      );
      tags.set(`${repository}:v1`, manifest.digest);
      return { reference: `${host}/${repository}:v1`, digests: layers.map(({ digest }) => digest) };
    },
    blobs,
    tags,
    /** Holds a blob back until `release`; `asked` resolves when somebody waits for it. */
    hold(digest: string) {
      const gate = Promise.withResolvers<void>();
      const arrival = Promise.withResolvers<void>();
      heldBack.set(digest, { gate: gate.promise, asked: arrival.resolve });
      return {
        asked: arrival.promise,
        release: () => {
          heldBack.delete(digest);
          gate.resolve();
        },
      };
    },
  };
}
