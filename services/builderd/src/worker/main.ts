import { Socket } from "node:net";
import { inspect } from "node:util";
import { PackageScan } from "@unkey/attest/packages";
import { assembleRootfs, unpackLayer } from "@unkey/oci/rootfs";
import { encodeFrame, readFrames } from "./frames.ts";
import { type AssembleJob, failureMessage, type Job, type UnpackJob } from "./messages.ts";

/*
 * The process that reads what strangers wrote. One job, told on file descriptor 3 and answered there; a layer's bytes on standard
 * input. It ends with its job, or when builderd goes away.
 */

const jobBytes = 2 ** 20;
const progressIntervalMs = 100;

const control = new Socket({ fd: 3 });
const gone = new AbortController();
control.on("error", () => process.exit(1));

function progress(): (done: number, total: number) => void {
  let toldAtMs = Number.NEGATIVE_INFINITY;
  return (done, total) => {
    const nowMs = performance.now();
    if (nowMs - toldAtMs < progressIntervalMs && done !== total) return;
    toldAtMs = nowMs;
    control.write(encodeFrame({ kind: "progress", done, total }));
  };
}

async function unpack({ outDirectory, ...layer }: UnpackJob): Promise<unknown> {
  const tell = progress();
  let read = 0;
  async function* counted(): AsyncGenerator<Uint8Array> {
    for await (const chunk of process.stdin as AsyncIterable<Buffer>) {
      yield chunk;
      read += chunk.length;
      tell(read, layer.sizeBytes);
    }
  }
  await unpackLayer(counted(), { ...layer, directory: outDirectory, signal: gone.signal });
  return { kind: "done", rootfs: null };
}

async function assemble({ setuid, ...job }: AssembleJob): Promise<unknown> {
  const scan = new PackageScan();
  const { captured, ...rootfs } = await assembleRootfs({
    ...job,
    policy: { setuid },
    wanted: (path, sizeBytes) => scan.wants(path, sizeBytes),
    signal: gone.signal,
    onBytes: progress(),
  });
  return { kind: "done", rootfs: { ...rootfs, packages: scan.list(captured) } };
}

async function answer(job: Job): Promise<unknown> {
  try {
    return await (job.kind === "unpack" ? unpack(job) : assemble(job));
  } catch (error) {
    process.stderr.write(`${inspect(error)}\n`); // builderd's log has more than the caller may see
    return failureMessage(error);
  }
}

for await (const job of readFrames(control, jobBytes)) {
  const told = await answer(job as Job); // builderd's own words
  await new Promise((resolve) => control.write(encodeFrame(told), resolve));
  break;
}
process.exit(0);
