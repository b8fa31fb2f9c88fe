import type { ServiceImpl } from "@connectrpc/connect";
import type { MeteringService, SampleFrame } from "@unkey/api/metering";
import { ServiceError } from "@unkey/base";
import type { MeterService } from "./service.ts";

/** Frames of one stream that wait for the disk at once; the sender waits behind them. */
const maxInFlight = 256;

export function meteringHandlers(service: MeterService, stopping: AbortSignal): ServiceImpl<typeof MeteringService> {
  return {
    streamSamples: (frames, context) => acknowledge(service, frames, AbortSignal.any([context.signal, stopping])),
    async notifyVmStarted({ tenantId, series, baseline }) {
      await service.vmStarted({ tenantId, series: given("series", series), baseline: given("baseline", baseline) });
      return {};
    },
    async notifyVmStopped({ tenantId, series, baseline, final }) {
      await service.vmStopped({
        tenantId,
        series: given("series", series),
        baseline: given("baseline", baseline),
        final: given("final", final),
      });
      return {};
    },
    listWindows({ tenantId, vmId }) {
      return service.windows(given("tenant_id", tenantId || undefined), vmId);
    },
    getMeteringStatus: () => service.status(),
  };
}

/** Takes frames as fast as the disk allows and yields how far they are durable; several frames may share an answer. */
async function* acknowledge(service: MeterService, frames: AsyncIterable<SampleFrame>, signal: AbortSignal) {
  let news = Promise.withResolvers<void>();
  const wake = () => {
    news.resolve();
    news = Promise.withResolvers();
  };
  let hostId: string | undefined;
  let epoch = 0n;
  let ended = false;
  let failure: unknown;
  let inFlight = 0;
  const read = async () => {
    for await (const frame of frames) {
      hostId ??= frame.hostId;
      epoch = frame.hostEpoch;
      if (frame.hostId !== hostId) throw new ServiceError("INVALID_REQUEST", "one stream carries one host's frames");
      inFlight += 1;
      service
        .ingest(frame)
        .catch((error: unknown) => {
          failure ??= error;
        })
        .finally(() => {
          inFlight -= 1;
          wake();
        });
      while (inFlight >= maxInFlight && failure === undefined) await news.promise;
      if (failure !== undefined || signal.aborted) return;
    }
  };
  const reading = read()
    .catch((error: unknown) => {
      failure ??= error;
    })
    .finally(() => {
      ended = true;
      wake();
    });
  signal.addEventListener("abort", wake, { once: true });
  let told = { epoch: 0n, frameSeq: 0 };
  for (;;) {
    const waiting = news.promise;
    const done = ended && inFlight === 0;
    if (hostId !== undefined) {
      const now = service.progress(hostId);
      if (now.epoch === epoch && (now.epoch !== told.epoch || now.frameSeq !== told.frameSeq)) {
        told = now;
        yield { hostEpoch: now.epoch, frameSeq: BigInt(now.frameSeq) };
        continue;
      }
    }
    if (failure !== undefined) throw failure;
    if (done) break;
    if (signal.aborted)
      throw new ServiceError("SHUTTING_DOWN", "the meter is stopping; send again what is not acknowledged");
    await waiting;
  }
  await reading;
}

function given<T>(field: string, value: T | undefined): T {
  if (value === undefined) throw new ServiceError("INVALID_REQUEST", `${field} is required`);
  return value;
}
