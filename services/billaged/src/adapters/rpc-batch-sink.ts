import { BillingService } from "@unkey/api/billing";
import type { RpcChannel } from "@unkey/rpc";
import type { EncodedBatch } from "../domain/batch-encoding.ts";
import type { BatchSink, SettledBatch } from "../ports.ts";

/** The billing aggregator's stream. */
export class RpcBatchSink implements BatchSink {
  readonly #channel: RpcChannel;

  constructor(channel: RpcChannel) {
    this.#channel = channel;
  }

  async *publish(batches: AsyncIterable<EncodedBatch>, signal: AbortSignal): AsyncGenerator<SettledBatch> {
    const requests = async function* () {
      for await (const { batchId, zstd, bytes, sha256 } of batches) {
        yield { batchId, batchZstd: zstd, batchBytes: bytes, batchSha256: sha256 };
      }
    };
    const client = this.#channel.client(BillingService);
    for await (const { batchId, outcome, detail } of client.publishBatches(requests(), { signal })) {
      yield { batchId, outcome, detail };
    }
  }
}
