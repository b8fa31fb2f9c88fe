import { createReadStream, lstatSync, readdirSync } from "node:fs";
import { open } from "node:fs/promises";
import { join } from "node:path";
import { usageFailure } from "../failure.ts";

/** What of an image is uploaded: pieces of a tar archive, and how long the whole is. */
export interface UploadBody {
  readonly sizeBytes: number;
  /** Fresh from the start at each call, for a second try. */
  pieces(): AsyncIterable<Uint8Array>;
}

/** A message holds at most 1 MiB; smaller pieces show progress sooner. */
const pieceBytes = 256 * 1024;
const blockBytes = 512;
/** More files than any image has layers and platforms. */
const maxFiles = 10_000;

export function archiveBody(path: string): UploadBody {
  return { sizeBytes: lstatSync(path).size, pieces: () => createReadStream(path, { highWaterMark: pieceBytes }) };
}

interface Member {
  readonly name: string;
  readonly sizeBytes: number;
}

/**
 * An OCI layout directory (https://github.com/opencontainers/image-spec/blob/main/image-layout.md) as a tar archive
 * made on the fly: `oci-layout`, `index.json` and the sha256 blobs, sorted, nothing else of the directory. Links are
 * refused, because they would upload files from elsewhere.
 */
export function layoutBody(dir: string): UploadBody {
  const blobs = readdirSync(join(dir, "blobs", "sha256")).toSorted();
  if (blobs.length > maxFiles) {
    throw usageFailure(
      `${dir} holds ${blobs.length} blobs`,
      `Copy the one image into a layout of its own (at most ${maxFiles}).`,
    );
  }
  const names = ["oci-layout", "index.json", ...blobs.map((name) => `blobs/sha256/${name}`)];
  const members = names.map((name): Member => {
    const stat = lstatSync(join(dir, name));
    const odd = name.startsWith("blobs/") && !/^blobs\/sha256\/[0-9a-f]{64}$/.test(name);
    if (!stat.isFile() || odd) {
      throw usageFailure(
        `${name} in ${dir} is not a plain file of an OCI layout`,
        "Make the layout again with skopeo or docker buildx.",
      );
    }
    return { name, sizeBytes: stat.size };
  });
  const padded = (sizeBytes: number) => Math.ceil(sizeBytes / blockBytes) * blockBytes;
  return {
    sizeBytes: members.reduce((sum, member) => sum + blockBytes + padded(member.sizeBytes), 2 * blockBytes),
    pieces: () => tarPieces(dir, members),
  };
}

async function* tarPieces(dir: string, members: readonly Member[]): AsyncGenerator<Uint8Array> {
  for (const { name, sizeBytes } of members) {
    yield tarHeader(name, sizeBytes);
    yield* exactly(join(dir, name), sizeBytes);
    const rest = sizeBytes % blockBytes;
    if (rest > 0) yield new Uint8Array(blockBytes - rest);
  }
  yield new Uint8Array(2 * blockBytes);
}

/** The header promised `sizeBytes`: a file that shrank meanwhile cannot be sent, one that grew is cut. */
async function* exactly(path: string, sizeBytes: number): AsyncGenerator<Uint8Array> {
  await using file = await open(path, "r");
  for (let sent = 0; sent < sizeBytes; ) {
    const piece = new Uint8Array(Math.min(pieceBytes, sizeBytes - sent));
    const { bytesRead } = await file.read(piece, 0, piece.length, sent);
    if (bytesRead === 0) throw usageFailure(`${path} changed while it was uploaded`, "Run the command again.");
    yield piece.subarray(0, bytesRead);
    sent += bytesRead;
  }
}

/** A ustar header (POSIX.1-2017, pax, "ustar Interchange Format") of a regular file with mode 0644. */
function tarHeader(name: string, sizeBytes: number): Uint8Array {
  const header = Buffer.alloc(blockBytes);
  header.write(name, 0, 100, "latin1");
  header.write("0000644\0", 100, "latin1");
  header.write("0000000\0", 108, "latin1");
  header.write("0000000\0", 116, "latin1");
  if (sizeBytes < 8 ** 11) header.write(`${sizeBytes.toString(8).padStart(11, "0")}\0`, 124, "latin1");
  else {
    // GNU's base-256 form for sizes of 8 GiB and more.
    header[124] = 0x80;
    header.writeBigUInt64BE(BigInt(sizeBytes), 128);
  }
  header.write("00000000000\0", 136, "latin1");
  header.write("        ", 148, "latin1");
  header.write("0", 156, "latin1");
  header.write("ustar\x0000", 257, "latin1");
  const checksum = header.reduce((sum, byte) => sum + byte, 0);
  header.write(`${checksum.toString(8).padStart(6, "0")}\0 `, 148, "latin1");
  return header;
}
