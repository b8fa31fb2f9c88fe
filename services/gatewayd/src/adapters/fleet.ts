import { clone, create } from "@bufbuild/protobuf";
import type { Client } from "@connectrpc/connect";
import { LogSource, type MetalService, type Vm, VmSchema, type VmSpec, VmState } from "@unkey/api/metal";
import { isServiceError } from "@unkey/base";
import type { VmRow } from "../store/rows.ts";
import type { Acting, CallLimits, Platform } from "./platform.ts";

/** A guest may take its time under software emulation. */
const slowVerbMs = 150_000;
const quickVerbMs = 30_000;
const tailLimitBytes = 64 * 1024;
const tailTimeoutMs = 5000;

export type VmVerb = "bootVm" | "pauseVm" | "resumeVm" | "rebootVm";

/** Verbs on one VM, sent to the metald that owns it. */
export class Fleet {
  readonly #platform: Platform;

  constructor(platform: Platform) {
    this.#platform = platform;
  }

  async create(vm: VmRow, request: { spec: VmSpec; reservationId: string }, acting: Acting, signal: AbortSignal) {
    const { tenantId, vmId, appId, deploymentId } = vm;
    return this.#on(vm, (metal) =>
      metal.createVm(
        { tenantId, vmId, appId, deploymentId, ...request },
        this.#platform.call(acting, { signal, timeoutMs: slowVerbMs }),
      ),
    );
  }

  async get(vm: VmRow, acting: Acting, signal: AbortSignal): Promise<Vm> {
    return this.#on(vm, (metal) => metal.getVm(ids(vm), this.#quick(acting, signal)));
  }

  async act(vm: VmRow, verb: VmVerb, acting: Acting, signal: AbortSignal): Promise<Vm> {
    return this.#on(vm, (metal) =>
      metal[verb](ids(vm), this.#platform.call(acting, { signal, timeoutMs: slowVerbMs })),
    );
  }

  async shutdown(vm: VmRow, force: boolean, acting: Acting, signal: AbortSignal): Promise<Vm> {
    return this.#on(vm, (metal) =>
      metal.shutdownVm({ ...ids(vm), force }, this.#platform.call(acting, { signal, timeoutMs: slowVerbMs })),
    );
  }

  /** Removes a VM, in order when `graceful`. One that is gone, or never came to be, is success. */
  async remove(vm: VmRow, graceful: boolean, acting: Acting, signal: AbortSignal): Promise<Vm> {
    if (vm.hostId === "") return gone(vm);
    if (graceful) {
      await this.shutdown(vm, false, acting, signal).catch((error: unknown) => {
        // Not running, or unknown: deleting it is what counts.
        const harmless = isServiceError(error) && (error.code === "failed_precondition" || error.code === "not_found");
        if (!harmless) throw error;
      });
    }
    try {
      return await this.#on(vm, (metal) =>
        metal.deleteVm(ids(vm), this.#platform.call(acting, { signal, timeoutMs: slowVerbMs })),
      );
    } catch (error) {
      if (isServiceError(error) && error.code === "not_found") return gone(vm);
      throw error;
    }
  }

  /** Gives back what a VM that was never created holds; it runs out by itself too. */
  async releaseRoom(vm: VmRow, acting: Acting, signal: AbortSignal): Promise<void> {
    const { tenantId, reservationId } = vm;
    if (vm.hostId === "" || reservationId === "") return;
    await this.#on(vm, (metal) => metal.releaseReservation({ tenantId, reservationId }, this.#quick(acting, signal)));
  }

  /** Output of a VM as it was written. */
  async *logs(
    vm: VmRow,
    options: { readonly source: LogSource; readonly follow: boolean; readonly tailLines: number },
    acting: Acting,
    limits: CallLimits,
  ) {
    const metal = await this.#platform.hosts.client(vm.hostId);
    yield* metal.streamLogs({ ...ids(vm), ...options }, this.#platform.call(acting, limits));
  }

  /** The last lines that the program wrote, or the console if it wrote none; empty when they cannot be had. */
  async lastLines(vm: VmRow, count: number, acting: Acting, signal: AbortSignal): Promise<string[]> {
    for (const source of [LogSource.APP, LogSource.CONSOLE]) {
      const lines = await this.#tail(vm, source, count, acting, signal).catch(() => []);
      if (lines.length > 0) return lines;
    }
    return [];
  }

  async #tail(vm: VmRow, source: LogSource, count: number, acting: Acting, signal: AbortSignal): Promise<string[]> {
    const chunks: Uint8Array[] = [];
    let size = 0;
    const options = { source, follow: false, tailLines: count };
    for await (const { data } of this.logs(vm, options, acting, { signal, timeoutMs: tailTimeoutMs })) {
      chunks.push(data);
      size += data.byteLength;
      while (size > tailLimitBytes && chunks.length > 1) size -= chunks.shift()?.byteLength ?? 0;
    }
    return printableLines(Buffer.concat(chunks), count);
  }

  async #on<T>(vm: VmRow, body: (metal: Client<typeof MetalService>) => Promise<T>): Promise<T> {
    return this.#platform.hosts.on(vm.hostId, body);
  }

  #quick(acting: Acting, signal: AbortSignal) {
    return this.#platform.call(acting, { signal, timeoutMs: quickVerbMs });
  }
}

/** At most `count` lines, each of at most 500 characters, free of control characters. */
function printableLines(bytes: Uint8Array, count: number): string[] {
  const text = new TextDecoder().decode(bytes.subarray(Math.max(0, bytes.byteLength - tailLimitBytes)));
  return text
    .split(/\r?\n/)
    .map((line) => line.replaceAll(/[^\P{C}\t]/gu, "").slice(0, 500))
    .filter((line) => line.trim() !== "")
    .slice(-count);
}

function ids({ tenantId, vmId }: VmRow) {
  return { tenantId, vmId };
}

/** What is known of a VM that its host no longer has. */
export function gone(vm: VmRow): Vm {
  return describedByRow(vm, VmState.DELETED);
}

/** A VM as its row knows it, for when its host cannot be asked. */
export function describedByRow(vm: VmRow, state: VmState): Vm {
  const { tenantId, vmId, appId, deploymentId, hostId, ipAddress } = vm;
  const known = vm.lastSeen ? clone(VmSchema, vm.lastSeen) : create(VmSchema, { createdAtMs: BigInt(vm.createdAtMs) });
  return Object.assign(known, { tenantId, vmId, appId, deploymentId, hostId, ipAddress, state });
}
