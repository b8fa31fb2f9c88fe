import { create } from "@bufbuild/protobuf";
import type { ConnectRouter, HandlerContext } from "@connectrpc/connect";
import { LogChunkSchema, LogSource, MetalService as MetalContract, type Vm as VmMessage } from "@unkey/api/metal";
import { parseId, ServiceError, type TenantId } from "@unkey/base";
import { callerOf } from "@unkey/rpc";
import type { Vm } from "./domain/vm.ts";
import type { HostView } from "./host-view.ts";
import type { MetalService, Scope } from "./service.ts";
import { toVmMessage } from "./vm-messages.ts";

const defaultPageSize = 100;

/** The contract in terms of the service: ids are parsed and results shown, nothing is decided here. */
export function metalRoutes(
  service: MetalService,
  host: HostView,
  stopping: AbortSignal,
): (router: ConnectRouter) => void {
  const show = (vm: Vm): VmMessage => toVmMessage(vm, { hostId: service.hostId, ipAddress: service.addressOf(vm) });

  return (router) =>
    router.service(MetalContract, {
      createVm: async (request) => show(await service.createVm(request)),
      bootVm: async ({ vmId, tenantId }) => show(await service.perform("boot", tenant(tenantId), vmId)),
      pauseVm: async ({ vmId, tenantId }) => show(await service.perform("pause", tenant(tenantId), vmId)),
      resumeVm: async ({ vmId, tenantId }) => show(await service.perform("resume", tenant(tenantId), vmId)),
      rebootVm: async ({ vmId, tenantId }) => show(await service.perform("reboot", tenant(tenantId), vmId)),
      shutdownVm: async ({ vmId, tenantId, force }, context) =>
        show(await service.perform("shutdown", scopeOf(tenantId, context), vmId, { force })),
      deleteVm: async ({ vmId, tenantId }, context) =>
        show(await service.perform("delete", scopeOf(tenantId, context), vmId)),
      getVm: async ({ vmId, tenantId }, context) => show(await service.getVm(scopeOf(tenantId, context), vmId)),

      listVms: async (request, context) => {
        const limit = request.pageSize || defaultPageSize;
        const vms = await service.listVms({
          tenantId: scopeOf(request.tenantId, context),
          appId: request.appId || undefined,
          includeDeleted: request.includeDeleted,
          before: readPageToken(request.pageToken),
          limit: limit + 1,
        });
        const page = vms.slice(0, limit);
        const last = page.at(-1);
        return {
          vms: page.map(show),
          nextPageToken: vms.length > limit && last ? `${last.createdAtMs}:${last.id}` : "",
        };
      },

      watchVms: async function* ({ tenantId, vmId }, context) {
        const scope = scopeOf(tenantId, context);
        const only = vmId === "" ? undefined : parseId("vm", vmId, "vm_id");
        const signal = AbortSignal.any([context.signal, stopping]);
        for await (const vm of service.watchVms(scope, only, signal)) yield show(vm);
      },

      streamLogs: async function* ({ tenantId, vmId, source, follow, tailLines }, context) {
        const pieces = service.streamLogs(tenant(tenantId), vmId, {
          source: source === LogSource.CONSOLE ? "console" : "app",
          follow,
          tailLines,
          signal: AbortSignal.any([context.signal, stopping]),
        });
        for await (const { data, droppedBytes } of pieces) {
          yield create(LogChunkSchema, { data, droppedBytes: BigInt(droppedBytes) });
        }
      },

      getHost: () => host.show(),

      drainHost: async function* ({ deleteVms }) {
        for await (const vm of service.drain({ deleteVms })) yield show(vm);
      },

      reserveCapacity: async ({ tenantId, reservationId, resources, holdMs }) => {
        if (!resources) throw new ServiceError("INVALID_REQUEST", "resources: is missing");
        const expiresAtMs = await service.reserve({
          id: parseId("rsv", reservationId, "reservation_id"),
          tenantId: tenant(tenantId),
          vcpuCount: resources.vcpuCount,
          memoryBytes: Number(resources.memoryBytes),
          diskBytes: Number(resources.diskBytes),
          holdMs,
        });
        return { reservationId, resources, expiresAtMs: BigInt(expiresAtMs) };
      },

      releaseReservation: async ({ tenantId, reservationId }) => {
        await service.releaseReservation(tenant(tenantId), parseId("rsv", reservationId, "reservation_id"));
        return {};
      },

      snapshotVm: unimplemented,
      restoreVm: unimplemented,
      listSnapshots: unimplemented,
      deleteSnapshot: unimplemented,
    });
}

function unimplemented(): never {
  throw new ServiceError("UNIMPLEMENTED", "this release of metald does not offer it");
}

function tenant(tenantId: string): TenantId {
  return parseId("tenant", tenantId, "tenant_id");
}

/** The tenant that the call acts for; only an operator may act for none and see all. */
function scopeOf(tenantId: string, context: HandlerContext): Scope {
  const caller = callerOf(context);
  if (caller.tenantId !== undefined) return caller.tenantId;
  if (tenantId === "" && caller.service === "operator") return undefined;
  return tenant(tenantId);
}

function readPageToken(token: string): { readonly createdAtMs: number; readonly id: string } | undefined {
  if (token === "") return undefined;
  const [createdAt = "", id = ""] = token.split(":");
  if (!/^\d{1,15}$/.test(createdAt))
    throw new ServiceError("INVALID_REQUEST", "page_token: is not from an earlier answer");
  return { createdAtMs: Number(createdAt), id: parseId("vm", id, "page_token") };
}
