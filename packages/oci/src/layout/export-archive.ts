import { createReadStream } from "node:fs";
import { lstat, readdir } from "node:fs/promises";
import { join } from "node:path";
import { ServiceError } from "@unkey/base";
import { tarEnd, tarHeader, tarPadding } from "../tar/tar-writer.ts";
import { digestOfBlobFile, indexFile, layoutFile } from "./layout-files.ts";

/** The tar archive of an OCI layout directory; the same files give the same bytes. Throws IMAGE_ARCHIVE_INVALID. */
export async function* exportLayoutArchive(directory: string): AsyncGenerator<Uint8Array> {
  for (const file of [layoutFile, indexFile, ...(await blobFiles(directory))]) {
    const path = join(directory, file);
    const facts = await lstat(path).catch((cause: unknown) => {
      throw new ServiceError("IMAGE_ARCHIVE_INVALID", `${directory} is not an OCI layout: it has no ${file}`, {
        cause,
      });
    });
    if (!facts.isFile()) throw new ServiceError("IMAGE_ARCHIVE_INVALID", `${path} is not a regular file`);
    yield tarHeader({
      type: "file",
      name: file,
      linkName: "",
      mode: 0o644,
      uid: 0,
      gid: 0,
      mtimeNs: 0n,
      sizeBytes: facts.size,
      deviceMajor: 0,
      deviceMinor: 0,
      xattrs: new Map(),
    });
    let bytes = 0;
    // A file that grows meanwhile is cut at the size announced; its digest tells.
    if (facts.size > 0) {
      for await (const chunk of createReadStream(path, { end: facts.size - 1 }) as AsyncIterable<Buffer>) {
        bytes += chunk.length;
        yield chunk;
      }
    }
    if (bytes !== facts.size) throw new ServiceError("IMAGE_ARCHIVE_INVALID", `${path} changed while it was read`);
    yield tarPadding(facts.size);
  }
  yield tarEnd();
}

async function blobFiles(directory: string): Promise<string[]> {
  const found: string[] = [];
  for (const algorithm of ["sha256", "sha512"]) {
    const names = await readdir(join(directory, "blobs", algorithm)).catch(() => []);
    found.push(
      ...names.map((name) => `blobs/${algorithm}/${name}`).filter((name) => digestOfBlobFile(name) !== undefined),
    );
  }
  return found.sort();
}
