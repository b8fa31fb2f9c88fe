import assert from "node:assert/strict";
import { execFile } from "node:child_process";
import { createHash } from "node:crypto";
import { readFile, writeFile } from "node:fs/promises";
import { join } from "node:path";
import type { TestContext } from "node:test";
import { promisify } from "node:util";
import { pushBlob, pushManifest } from "@unkey/oci/testing";
import { temporary } from "./harness.ts";

/*
 * Signatures are made by openssl and laid down in a real registry by hand, as cosign's specification says, so that nothing of what
 * verifies them has taken part in their making.
 */

const run = promisify(execFile);
export const manifestType = "application/vnd.oci.image.manifest.v1+json";

export function digestOf(bytes: Uint8Array): string {
  return `sha256:${createHash("sha256").update(bytes).digest("hex")}`;
}

export function json(value: unknown): Buffer {
  return Buffer.from(JSON.stringify(value));
}

/** A key of openssl's; P-256 unless told. */
export class Signer {
  readonly #directory: string;
  readonly pem: string;
  readonly #isEd25519: boolean;

  private constructor(directory: string, pem: string, isEd25519: boolean) {
    this.#directory = directory;
    this.pem = pem;
    this.#isEd25519 = isEd25519;
  }

  static async make(context: TestContext, ...kind: string[]): Promise<Signer> {
    const directory = await temporary(context);
    const key = join(directory, "key.pem");
    const args = kind.length > 0 ? kind : ["-algorithm", "EC", "-pkeyopt", "ec_paramgen_curve:P-256"];
    await run("openssl", ["genpkey", ...args, "-out", key]);
    const { stdout } = await run("openssl", ["pkey", "-in", key, "-pubout"]);
    return new Signer(directory, stdout, args.includes("ed25519"));
  }

  async sign(message: Uint8Array): Promise<string> {
    const [key, input, output] = ["key.pem", "message", "signature"].map((name) => join(this.#directory, name));
    assert.ok(key !== undefined && input !== undefined && output !== undefined);
    await writeFile(input, message);
    const args = this.#isEd25519
      ? ["pkeyutl", "-sign", "-rawin", "-inkey", key, "-in", input, "-out", output]
      : ["dgst", "-sha256", "-sign", key, "-out", output, input];
    await run("openssl", args);
    return (await readFile(output)).toString("base64");
  }

  async keyId(): Promise<string> {
    const der = join(this.#directory, "public.der");
    await run("openssl", ["pkey", "-in", join(this.#directory, "key.pem"), "-pubout", "-outform", "DER", "-out", der]);
    return `SHA256:${createHash("sha256")
      .update(await readFile(der))
      .digest("hex")}`;
  }
}

/** What cosign signs. */
export function signaturePayload(digest: string, reference: string): Buffer {
  return json({
    critical: {
      identity: { "docker-reference": reference },
      image: { "docker-manifest-digest": digest },
      type: "cosign container image signature",
    },
    optional: { by: "the test" },
  });
}

/** Pushes `blobs` as the layers of a manifest under a tag. */
export async function pushSigned(
  place: { readonly host: string; readonly repository: string; readonly tag: string },
  mediaType: string,
  blobs: readonly { readonly bytes: Uint8Array; readonly signature?: string }[],
): Promise<void> {
  const config = json({});
  await pushBlob(place, digestOf(config), config);
  for (const { bytes } of blobs) await pushBlob(place, digestOf(bytes), bytes);
  const descriptor = (type: string, bytes: Uint8Array) => ({
    mediaType: type,
    digest: digestOf(bytes),
    size: bytes.length,
  });
  const manifest = {
    schemaVersion: 2,
    mediaType: manifestType,
    config: descriptor("application/vnd.oci.image.config.v1+json", config),
    layers: blobs.map(({ bytes, signature = "" }) => ({
      ...descriptor(mediaType, bytes),
      annotations: { "dev.cosignproject.cosign/signature": signature },
    })),
  };
  await pushManifest(place, manifestType, json(manifest));
}

export const simpleSigning = "application/vnd.dev.cosign.simplesigning.v1+json";

export function signatureTag(digest: string): string {
  return `${digest.replace(":", "-")}.sig`;
}
