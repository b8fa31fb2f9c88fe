import { create, fromBinary, toBinary } from "@bufbuild/protobuf";
import { NotifyVmStartedRequestSchema, NotifyVmStoppedRequestSchema, SampleFrameSchema } from "@unkey/api/metering";
import type { Fact } from "./meter.ts";

// A fact in the log: one byte for its kind, then the message that it came as.
const kinds = { started: 1, frame: 2, stopped: 3, tick: 4 } as const;

export function encodeFact(fact: Fact): Uint8Array {
  const message = messageOf(fact);
  const bytes = new Uint8Array(message.length + 1);
  bytes[0] = kinds[fact.kind];
  bytes.set(message, 1);
  return bytes;
}

function messageOf(fact: Fact): Uint8Array {
  switch (fact.kind) {
    case "frame":
      return toBinary(SampleFrameSchema, fact.frame);
    case "started": {
      const { series, baseline } = fact;
      return toBinary(NotifyVmStartedRequestSchema, create(NotifyVmStartedRequestSchema, { series, baseline }));
    }
    case "stopped": {
      const { series, baseline, final } = fact;
      return toBinary(NotifyVmStoppedRequestSchema, create(NotifyVmStoppedRequestSchema, { series, baseline, final }));
    }
    case "tick": {
      const { hostId, atMs } = fact;
      return toBinary(SampleFrameSchema, create(SampleFrameSchema, { hostId, atMs: BigInt(atMs) }));
    }
  }
}

/** Throws when the bytes are no fact: the log that held them had a good checksum, so the release that wrote it is another. */
export function decodeFact(bytes: Uint8Array): Fact {
  const message = bytes.subarray(1);
  const kind = bytes[0];
  if (kind === kinds.frame) return { kind: "frame", frame: fromBinary(SampleFrameSchema, message) };
  if (kind === kinds.started) {
    const { series, baseline } = fromBinary(NotifyVmStartedRequestSchema, message);
    if (series && baseline) return { kind: "started", series, baseline };
  } else if (kind === kinds.stopped) {
    const { series, baseline, final } = fromBinary(NotifyVmStoppedRequestSchema, message);
    if (series && baseline && final) return { kind: "stopped", series, baseline, final };
  } else if (kind === kinds.tick) {
    const { hostId, atMs } = fromBinary(SampleFrameSchema, message);
    return { kind: "tick", hostId, atMs: Number(atMs) };
  }
  throw new Error(`a record of kind ${kind ?? "none"} in the log is no fact of this release`);
}
