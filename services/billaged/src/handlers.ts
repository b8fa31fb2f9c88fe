import type { ServiceImpl } from "@connectrpc/connect";
import type { MeteringService, SampleFrame } from "@unkey/api/metering";
import { ServiceError } from "@unkey/base";
import type { MeterService } from "./service.ts";
import { WakeUp } from "./wake-up.ts";

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
  const news = new WakeUp();
  const state: { hostId: string; epoch: bigint; inFlight: number; ended: boolean; failure: Error | undefined } = {
    hostId: "",
    epoch: 0n,
    inFlight: 0,
    ended: false,
    failure: undefined,
  };
  const fail = (error: unknown) => {
    state.failure ??= error instanceof Error ? error : new Error("a frame was not taken", { cause: error });
  };
  const take = async (frame: SampleFrame) => {
    state.inFlight += 1;
    await service.ingest(frame).catch(fail);
    state.inFlight -= 1;
    news.call();
  };
  const read = async () => {
    for await (const frame of frames) {
      if (state.hostId !== "" && frame.hostId !== state.hostId) {
        throw new ServiceError("INVALID_REQUEST", "one stream carries one host's frames");
      }
      state.hostId = frame.hostId;
      state.epoch = frame.hostEpoch;
      void take(frame);
      while (state.inFlight >= maxInFlight && state.failure === undefined) await news.next;
      if (state.failure !== undefined || signal.aborted) return;
    }
  };
  const reading = read()
    .catch(fail)
    .finally(() => {
      state.ended = true;
      news.call();
    });
  signal.addEventListener("abort", () => news.call(), { once: true });
  let told = { epoch: 0n, frameSeq: 0 };
  for (;;) {
    const waiting = news.next;
    const done = state.ended && state.inFlight === 0;
    const now = service.progress(state.hostId);
    if (now.epoch === state.epoch && (now.epoch !== told.epoch || now.frameSeq !== told.frameSeq)) {
      told = now;
      yield { hostEpoch: now.epoch, frameSeq: BigInt(now.frameSeq) };
      continue;
    }
    if (state.failure !== undefined) throw state.failure;
    if (done) break;
    if (signal.aborted) {
      throw new ServiceError("SHUTTING_DOWN", "the meter is stopping; send again what is not acknowledged");
    }
    await waiting;
  }
  await reading;
}

function given<T>(field: string, value: T | undefined): T {
  if (value === undefined) throw new ServiceError("INVALID_REQUEST", `${field} is required`);
  return value;
}
