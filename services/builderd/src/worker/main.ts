import { Socket } from "node:net";
import { inspect } from "node:util";
import { PackageScan } from "@unkey/attest/packages";
import { RootfsAssembly, unpackLayer } from "@unkey/oci/rootfs";
import { encodeFrame, readFrames } from "./frames.ts";
import {
  type AssembleJob,
  type DigestsStep,
  failureMessage,
  type Job,
  type LayerStep,
  type UnpackJob,
  type WriteStep,
} from "./messages.ts";

/*
 * The process that reads what strangers wrote. One job, told on file descriptor 3, in steps if it is to assemble, and answered
 * there; a layer's bytes on standard input. It is ended when it has answered, or ends when builderd goes away. What builderd says is not checked.
 */

const stepBytes = 2 ** 20;
const progressIntervalMs = 100;

const control = new Socket({ fd: 3 });
const { signal } = new AbortController(); // what ends this process ends it at once
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

function unpack({ outDirectory, ...layer }: UnpackJob): unknown {
  unpackLayer({ ...layer, fd: 0, directory: outDirectory });
  return { kind: "done", rootfs: null };
}

/** `steps` are taken one by one: a loop that is left would close the socket that the answer goes to. */
async function assemble({ layerCount, limits }: AssembleJob, steps: AsyncGenerator): Promise<unknown> {
  await using assembly = new RootfsAssembly({ layerCount, limits, signal });
  for (;;) {
    const step = (await nextStep(steps)) as LayerStep | WriteStep;
    if (step.kind === "layer") {
      await assembly.add(step);
      continue;
    }
    const { setuid, devices, ...rest } = step;
    const digests = nextStep(steps).then((told) => (told as DigestsStep).digests);
    digests.catch(() => undefined); // asked for at the end
    const scan = new PackageScan();
    const { captured, ...rootfs } = await assembly.write({
      ...rest,
      devices: devices.map((isDevice, layer) => (isDevice ? digests.then((all) => all[layer] ?? "") : undefined)),
      policy: { setuid },
      wanted: (directory, name, sizeBytes) => scan.wants(directory, name, sizeBytes),
      onBytes: progress(),
    });
    return { kind: "done", rootfs: { ...rootfs, packages: scan.list(captured) } };
  }
}

async function nextStep(steps: AsyncGenerator): Promise<unknown> {
  const { value, done } = await steps.next();
  if (done === true) throw new Error("the job has no end");
  return value;
}

async function answer(steps: AsyncGenerator): Promise<unknown> {
  const { value, done } = await steps.next();
  if (done === true) return undefined; // without a job: it has filled the compile cache
  const job = value as Job;
  try {
    return await (job.kind === "unpack" ? unpack(job) : assemble(job, steps));
  } catch (error) {
    process.stderr.write(`${inspect(error)}\n`); // builderd's log has more than the caller may see
    return failureMessage(error);
  }
}

const steps = readFrames(control, stepBytes);
const told = await answer(steps);
if (told !== undefined) {
  control.write(encodeFrame(told));
  // builderd ends this process when it has the answer. It may be saying something still: to a closed socket that would be an
  // error, and the answer lost with it.
  for (let isOpen = true; isOpen; ) isOpen = (await steps.next()).done !== true;
}
process.exit(0);
