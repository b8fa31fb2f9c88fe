import { create } from "@bufbuild/protobuf";
import {
  CountersSchema,
  GaugesSchema,
  type Sample as SampleMessage,
  SampleSchema,
  type Series as SeriesMessage,
  SeriesSchema,
} from "@unkey/api/metering";
import type { HostId } from "@unkey/base";
import type { Sample, SeriesKey } from "../domain/sample.ts";

export function toSeriesMessage(hostId: HostId, key: SeriesKey): SeriesMessage {
  return create(SeriesSchema, {
    hostId,
    vmId: key.vmId,
    incarnation: key.incarnation,
    tenantId: key.tenantId,
    appId: key.appId,
    deploymentId: key.deploymentId,
  });
}

export function toSampleMessage(sample: Sample): SampleMessage {
  return create(SampleSchema, {
    seq: BigInt(sample.seq),
    atMs: BigInt(sample.atMs),
    counters: create(CountersSchema, {
      ...present("cpuTimeUs", sample.cpuTimeUs),
      ...present("diskReadBytes", sample.diskReadBytes),
      ...present("diskWriteBytes", sample.diskWriteBytes),
      ...present("netInBytes", sample.netInBytes),
      ...present("netOutBytes", sample.netOutBytes),
    }),
    gauges: create(GaugesSchema, {
      ...present("memoryAllocatedBytes", sample.memoryAllocatedBytes),
      ...present("memoryResidentBytes", sample.memoryResidentBytes),
      ...present("diskAllocatedBytes", sample.diskAllocatedBytes),
    }),
  });
}

/** A reading that failed is a field that is not there. */
function present<Name extends string>(name: Name, value: number): Partial<Record<Name, bigint>> {
  if (Number.isNaN(value)) return {};
  return { [name]: BigInt(value) } as Record<Name, bigint>;
}
