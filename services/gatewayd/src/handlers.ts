import { create, type MessageInitShape } from "@bufbuild/protobuf";
import type { HandlerContext, ServiceImpl } from "@connectrpc/connect";
import type { UploadImageRequestSchema as BuilderUploadSchema } from "@unkey/api/builder";
import {
  CreateApiKeyResponseSchema,
  GatewayService,
  ListApiKeysResponseSchema,
  ListAppsResponseSchema,
  ListAuditEventsResponseSchema,
  ListDeploymentsResponseSchema,
  ListVmsResponseSchema,
  PlatformSchema,
  type UploadImageRequest,
  UsageSchema,
} from "@unkey/api/gateway";
import { parseId, ServiceError } from "@unkey/base";
import { callerOf } from "@unkey/rpc";
import type { Acting, Platform } from "./adapters/platform.ts";
import type { Implementation } from "./api/api-runner.ts";
import { type AppService, actingOf } from "./service/apps.ts";
import type { BuildDocuments } from "./service/build-documents.ts";
import { type DeploymentService, readIdempotencyKey } from "./service/deployments.ts";
import type { KeyService } from "./service/keys.ts";
import { nextPageToken, readPage } from "./service/page.ts";
import { apiKeyView, auditView, deploymentView, type UrlOf } from "./service/views.ts";
import type { VmService } from "./service/vms.ts";
import type { AppStore } from "./store/app-store.ts";
import type { AuditStore } from "./store/audit-store.ts";

const queryTimeoutMs = 60_000;
const uploadTimeoutMs = 60 * 60_000;

export interface HandlerDeps {
  readonly deployments: DeploymentService;
  readonly apps: AppService;
  readonly appStore: AppStore;
  readonly vms: VmService;
  readonly keys: KeyService;
  readonly audit: AuditStore;
  readonly platform: Platform;
  readonly documents: BuildDocuments;
  readonly urlOf: UrlOf;
  readonly version: string;
  readonly appDomain: string;
  readonly maxUploadBytes: number;
}

/** The public API. Whatever is missing here answers UNIMPLEMENTED. The tenant is always the key's. */
export function gatewayHandlers(deps: HandlerDeps): Implementation {
  const { deployments, apps, appStore, vms, keys, audit, platform, documents, urlOf } = deps;
  const { builder, billing } = platform;
  const by = (context: HandlerContext) => actingOf(callerOf(context));
  const view = (row: Parameters<typeof deploymentView>[0]) => deploymentView(row, urlOf);
  const deploymentId = (request: { readonly deploymentId: string }) =>
    parseId("dep", request.deploymentId, "deployment_id");
  const vmId = (request: { readonly vmId: string }) => parseId("vm", request.vmId, "vm_id");
  const limits = (context: HandlerContext) => ({ signal: context.signal, timeoutMs: queryTimeoutMs });

  const handlers: Partial<ServiceImpl<typeof GatewayService>> = {
    async createDeployment(request, context) {
      const key = readIdempotencyKey(context.requestHeader);
      return view(await deployments.create(by(context).tenantId, request, key));
    },
    async getDeployment(request, context) {
      return view(await deployments.get(by(context).tenantId, deploymentId(request)));
    },
    async listDeployments(request, context) {
      const { rows, nextPageToken: token } = await deployments.list(by(context).tenantId, request);
      return create(ListDeploymentsResponseSchema, { deployments: rows.map(view), nextPageToken: token });
    },
    async *watchDeployment(request, context) {
      const { tenantId } = by(context);
      for await (const row of deployments.watch(tenantId, deploymentId(request), context.signal)) yield view(row);
    },
    async cancelDeployment(request, context) {
      return view(await deployments.cancel(by(context).tenantId, deploymentId(request)));
    },
    uploadImage(requests, context) {
      const acting = by(context);
      const parts = uploadParts(requests, acting, deps.maxUploadBytes);
      return builder.uploadImage(parts, platform.call(acting, { signal: context.signal, timeoutMs: uploadTimeoutMs }));
    },

    discardUpload({ uploadId }, context) {
      const acting = by(context);
      return builder.discardUpload({ tenantId: acting.tenantId, uploadId }, platform.call(acting, limits(context)));
    },

    async listApps(request, context) {
      return create(ListAppsResponseSchema, await apps.list(by(context), request, context.signal));
    },
    getApp: (request, context) => apps.get(by(context), request.app, context.signal),
    stopApp: (request, context) => apps.stop(by(context), request.app, context.signal),
    startApp: (request, context) => apps.start(by(context), request.app, context.signal),
    deleteApp: (request, context) => apps.delete(by(context), request.app, context.signal),

    async listVms(request, context) {
      return create(ListVmsResponseSchema, await vms.list(by(context), request, context.signal));
    },
    getVm: (request, context) => vms.get(by(context), vmId(request), context.signal),
    watchVms: (request, context) => vms.watch(by(context), request.app, context.signal),
    pauseVm: (request, context) => vms.act(by(context), vmId(request), "pauseVm", context.signal),
    resumeVm: (request, context) => vms.act(by(context), vmId(request), "resumeVm", context.signal),
    rebootVm: (request, context) => vms.act(by(context), vmId(request), "rebootVm", context.signal),
    startVm: (request, context) => vms.start(by(context), vmId(request), context.signal),
    stopVm: (request, context) => vms.stop(by(context), vmId(request), request.force, context.signal),
    deleteVm: (request, context) => vms.delete(by(context), vmId(request), context.signal),

    streamLogs(request, context) {
      const named = request.vmId === "" ? "" : vmId(request);
      return vms.logs(by(context), { ...request, vmId: named }, context.signal);
    },
    async getUsage(request, context) {
      const acting = by(context);
      const { tenantId } = acting;
      const appId = request.app === "" ? "" : (await appStore.latest(tenantId, request.app)).appId;
      const named = request.vmId === "" ? "" : (await appStore.getVm(tenantId, vmId(request))).vmId;
      const { fromMs, toMs } = request;
      const report = await billing.queryUsage(
        { tenantId, appId, vmId: named, fromMs, toMs },
        platform.call(acting, limits(context)),
      );
      const ids = [...new Set([...report.apps, ...report.vms].map((line) => line.appId))];
      const appNames = Object.fromEntries(await appStore.names(tenantId, ids));
      return create(UsageSchema, { report, appNames });
    },
    listInvoices({ pageSize, pageToken }, context) {
      const acting = by(context);
      const { tenantId } = acting;
      return billing.listInvoices({ tenantId, pageSize, pageToken }, platform.call(acting, limits(context)));
    },
    getInvoice({ invoiceId }, context) {
      const acting = by(context);
      return billing.getInvoice({ tenantId: acting.tenantId, invoiceId }, platform.call(acting, limits(context)));
    },
    listBuilds({ pageSize, pageToken }, context) {
      const acting = by(context);
      const { tenantId } = acting;
      return builder.listBuilds({ tenantId, pageSize, pageToken }, platform.call(acting, limits(context)));
    },
    getBuild({ buildId }, context) {
      const acting = by(context);
      return builder.getBuild({ tenantId: acting.tenantId, buildId }, platform.call(acting, limits(context)));
    },
    async *streamBuildLogs({ buildId, follow, afterSequence }, context) {
      const acting = by(context);
      const { tenantId } = acting;
      yield* builder.streamBuildLogs(
        { tenantId, buildId, follow, afterSequence },
        platform.call(acting, { signal: context.signal }),
      );
    },
    cancelBuild({ buildId }, context) {
      const acting = by(context);
      return builder.cancelBuild({ tenantId: acting.tenantId, buildId }, platform.call(acting, limits(context)));
    },
    getBuildQuota(_request, context) {
      const acting = by(context);
      return builder.getBuildQuota({ tenantId: acting.tenantId }, platform.call(acting, limits(context)));
    },
    verifyBuild({ buildId }, context) {
      const acting = by(context);
      return builder.verifyBuild({ tenantId: acting.tenantId, buildId }, platform.call(acting, limits(context)));
    },
    downloadBuildSbom: ({ buildId }, context) => documents.read(by(context), buildId, "package list", context.signal),
    downloadBuildProvenance: ({ buildId }, context) =>
      documents.read(by(context), buildId, "provenance", context.signal),

    async createApiKey(request, context) {
      const { tenantId, subject, roles } = by(context);
      const { key, secret } = await keys.create(tenantId, request, { apiKeyId: subject, scopes: roles });
      return create(CreateApiKeyResponseSchema, { apiKey: apiKeyView(key), secret });
    },
    async listApiKeys(_request, context) {
      const rows = await keys.list(by(context).tenantId);
      return create(ListApiKeysResponseSchema, { apiKeys: rows.map(apiKeyView) });
    },
    async revokeApiKey(request, context) {
      const id = parseId("key", request.apiKeyId, "api_key_id");
      return apiKeyView(await keys.revoke(by(context).tenantId, id));
    },
    async listAuditEvents(request, context) {
      const page = readPage(request);
      const before = page.after === "" ? Number.MAX_SAFE_INTEGER : Number(page.after);
      if (!Number.isSafeInteger(before)) throw new ServiceError("INVALID_REQUEST", "page_token: is none of ours");
      const records = await audit.list(by(context).tenantId, page.limit, before);
      return create(ListAuditEventsResponseSchema, {
        events: records.map(auditView),
        nextPageToken: nextPageToken(page, records, (record) => String(record.seq)),
      });
    },
    async getPlatform(_request, context) {
      const { tenantId } = by(context);
      const hosts = await platform.hosts.reachable();
      return create(PlatformSchema, { version: deps.version, appDomain: deps.appDomain, hosts, tenantId });
    },
  };
  return withUnimplemented(handlers);
}

/** Adds what nobody fills yet, so that each protocol refuses it alike. */
function withUnimplemented(handlers: Implementation): Implementation {
  const missing = GatewayService.methods.filter((method) => !handlers[method.localName]);
  const refuse = (name: string) => () => {
    throw new ServiceError("UNIMPLEMENTED", `${name} is not offered by this release`);
  };
  return { ...handlers, ...Object.fromEntries(missing.map(({ localName, name }) => [localName, refuse(name)])) };
}

/** The caller's chunks behind the header that builderd wants first; the first message may name the image. */
async function* uploadParts(
  requests: AsyncIterable<UploadImageRequest>,
  { tenantId }: Acting,
  maxBytes: number,
): AsyncGenerator<MessageInitShape<typeof BuilderUploadSchema>> {
  let size = 0;
  let begun = false;
  for await (const { chunk, name } of requests) {
    if (!begun) yield { part: { case: "header", value: { tenantId, name } } };
    else if (name !== "") throw new ServiceError("INVALID_REQUEST", "name: belongs into the first message");
    begun = true;
    size += chunk.byteLength;
    if (size > maxBytes) throw new ServiceError("BODY_TOO_LARGE", `the image is larger than ${maxBytes} bytes`);
    if (chunk.byteLength > 0) yield { part: { case: "chunk", value: chunk } };
  }
}
