import { createHash, randomBytes } from "node:crypto";
import { request as httpRequest } from "node:http";
import { request as httpsRequest } from "node:https";

/** A registry to be tested, however it is reached. */
export interface RegistryTarget {
  readonly name: string;
  readonly origin: string;
  readonly ca?: string;
  readonly authorization?: string;
}

export interface RegistryAnswer {
  readonly status: number;
  readonly headers: Readonly<Record<string, string | string[] | undefined>>;
  readonly body: Buffer;
  /** A header of one value; empty when it is absent. */
  header(name: string): string;
  json(): unknown;
  /** Codes of the errors in the body. */
  codes(): string[];
}

export interface RegistryAsk {
  readonly headers?: Readonly<Record<string, string>>;
  readonly query?: Readonly<Record<string, string | readonly string[]>>;
  readonly body?: Uint8Array | string;
}

/** One request over HTTP/1.1, without any help that a client library would give. */
export class RegistryApi {
  readonly target: RegistryTarget;

  constructor(target: RegistryTarget) {
    this.target = target;
  }

  send(method: string, path: string, ask: RegistryAsk = {}): Promise<RegistryAnswer> {
    const { origin, ca, authorization } = this.target;
    const url = new URL(path, origin);
    for (const [name, value] of Object.entries(ask.query ?? {})) {
      for (const each of Array.isArray(value) ? (value as string[]) : [value as string]) {
        url.searchParams.append(name, each);
      }
    }
    const body = ask.body === undefined ? undefined : Buffer.from(ask.body);
    const headers = {
      ...(authorization === undefined ? {} : { authorization }),
      ...(body === undefined ? {} : { "content-length": String(body.length) }),
      ...ask.headers,
    };
    const send = url.protocol === "https:" ? httpsRequest : httpRequest;
    return new Promise((resolve, reject) => {
      const request = send(url, { method, headers, agent: false, ...(ca === undefined ? {} : { ca }) }, (response) => {
        const parts: Buffer[] = [];
        response.on("data", (part: Buffer) => parts.push(part));
        response.once("error", reject);
        response.once("end", () => resolve(toAnswer(response.statusCode ?? 0, response.headers, Buffer.concat(parts))));
      });
      request.once("error", reject);
      request.end(body);
    });
  }

  async begin(repository: string, query: RegistryAsk["query"] = {}): Promise<RegistryAnswer> {
    return this.send("POST", `/v2/${repository}/blobs/uploads/`, { query, headers: { "content-length": "0" } });
  }

  /** POST, then PUT with the whole blob. */
  async pushBlob(repository: string, bytes: Uint8Array, digest = digestOf(bytes)): Promise<RegistryAnswer> {
    const begun = await this.begin(repository);
    return this.send("PUT", begun.header("location"), { query: { digest }, headers: octets, body: bytes });
  }

  pushManifest(
    repository: string,
    reference: string,
    manifest: Document,
    query: RegistryAsk["query"] = {},
  ): Promise<RegistryAnswer> {
    const headers = { "content-type": manifest.mediaType };
    return this.send("PUT", `/v2/${repository}/manifests/${reference}`, { query, headers, body: manifest.bytes });
  }

  blob(method: "GET" | "HEAD" | "DELETE", repository: string, digest: string, headers: RegistryAsk["headers"] = {}) {
    return this.send(method, `/v2/${repository}/blobs/${digest}`, { headers });
  }

  manifest(method: "GET" | "HEAD" | "DELETE", repository: string, reference: string) {
    return this.send(method, `/v2/${repository}/manifests/${reference}`, {
      headers: { accept: `${ociManifest}, ${ociIndex}` },
    });
  }
}

export const octets = { "content-type": "application/octet-stream" } as const;
export const ociManifest = "application/vnd.oci.image.manifest.v1+json";
export const ociIndex = "application/vnd.oci.image.index.v1+json";
const ociConfig = "application/vnd.oci.image.config.v1+json";
const ociLayer = "application/vnd.oci.image.layer.v1.tar";
export const emptyType = "application/vnd.oci.empty.v1+json";

/** A manifest or an index with the bytes that name it. */
export interface Document {
  readonly bytes: Buffer;
  readonly digest: string;
  readonly mediaType: string;
}

export interface ImageFixture extends Document {
  readonly config: Buffer;
  readonly layers: readonly Buffer[];
}

export interface ImageParts {
  readonly layers?: readonly Buffer[];
  readonly config?: Buffer;
  readonly configType?: string;
  /** Fields on top of those of every image. */
  readonly more?: Readonly<Record<string, unknown>>;
}

export function digestOf(bytes: Uint8Array | string, algorithm: "sha256" | "sha512" = "sha256"): string {
  return `${algorithm}:${createHash(algorithm).update(bytes).digest("hex")}`;
}

/** Bytes that no other test has pushed. */
export function fresh(size: number): Buffer {
  return randomBytes(size);
}

export function documentOf(value: Readonly<Record<string, unknown>>, mediaType: string): Document {
  const bytes = Buffer.from(JSON.stringify(value));
  return { bytes, digest: digestOf(bytes), mediaType };
}

export function descriptor(bytes: Uint8Array, mediaType: string): Record<string, unknown> {
  return { mediaType, digest: digestOf(bytes), size: bytes.length };
}

/** An image of random content, which nobody could run. */
export function image(parts: ImageParts = {}): ImageFixture {
  const { layers = [fresh(64)], configType = ociConfig, more = {} } = parts;
  const config = parts.config ?? Buffer.from(JSON.stringify({ architecture: "amd64", os: "linux", salt: fresh(8) }));
  const document = documentOf(
    {
      schemaVersion: 2,
      mediaType: ociManifest,
      config: descriptor(config, configType),
      layers: layers.map((layer) => descriptor(layer, ociLayer)),
      ...more,
    },
    ociManifest,
  );
  return { ...document, config, layers };
}

export function index(members: readonly Document[], more: Readonly<Record<string, unknown>> = {}): Document {
  const manifests = members.map((member) => ({
    ...descriptor(member.bytes, member.mediaType),
    platform: { os: "linux", architecture: "amd64" },
  }));
  return documentOf({ schemaVersion: 2, mediaType: ociIndex, manifests, ...more }, ociIndex);
}

function toAnswer(status: number, headers: RegistryAnswer["headers"], body: Buffer): RegistryAnswer {
  const json = (): unknown => JSON.parse(body.toString("utf8"));
  return {
    status,
    headers,
    body,
    header: (name) => String(headers[name] ?? ""),
    json,
    codes: () => (json() as { errors: { code: string }[] }).errors.map(({ code }) => code),
  };
}
