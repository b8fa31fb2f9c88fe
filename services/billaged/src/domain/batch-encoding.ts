import { createHash } from "node:crypto";
import { zstdCompressSync } from "node:zlib";
import { toBinary } from "@bufbuild/protobuf";
import { type WindowBatch, WindowBatchSchema } from "@unkey/api/metering";

/** A batch as it is kept and published. */
export interface EncodedBatch {
  readonly batchId: string;
  /** The serialized message, compressed with zstd. */
  readonly zstd: Uint8Array;
  /** Length and sha256 before compression. */
  readonly bytes: number;
  readonly sha256: Uint8Array;
}

export function encodeBatch(batch: WindowBatch): EncodedBatch {
  const message = toBinary(WindowBatchSchema, batch);
  return {
    batchId: batch.batchId,
    zstd: zstdCompressSync(message),
    bytes: message.length,
    sha256: createHash("sha256").update(message).digest(),
  };
}
