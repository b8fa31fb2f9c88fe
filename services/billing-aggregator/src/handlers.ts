import { create, fromBinary } from "@bufbuild/protobuf";
import type { ConnectRouter } from "@connectrpc/connect";
import {
  BatchOutcome,
  BillingService,
  MoneySchema,
  type PriceBook as PriceBookMessage,
  PriceBookSchema,
  PublishBatchesResponseSchema,
  type UsageLine as UsageLineMessage,
  UsageLineSchema,
  type UsageReport as UsageReportMessage,
  UsageReportSchema,
} from "@unkey/api/billing";
import { type GapCause, UsageWindowSchema } from "@unkey/api/metering";
import { parseId, ServiceError } from "@unkey/base";
import { type Caller, callerOf } from "@unkey/rpc";
import type { Billing, UsageAnswer, UsageQuestion } from "./billing.ts";
import type { PriceBook, PriceBookTerms } from "./domain/price-book.ts";
import { formatAmount } from "./domain/rate.ts";
import type { UsageLine, UsageReport } from "./domain/usage-report.ts";
import type { Intake, Settlement } from "./intake.ts";
import { untilStopping } from "./until-stopping.ts";

export interface HandlerDeps {
  readonly intake: Intake;
  readonly billing: Billing;
  /** Ends the streams that would not end by themselves. */
  readonly stopping: AbortSignal;
}

/** unkey.billing.v1.BillingService. What it does not name answers Unimplemented. */
export function billingRoutes({ intake, billing, stopping }: HandlerDeps): (router: ConnectRouter) => void {
  return (router) =>
    router.service(BillingService, {
      async *publishBatches(requests) {
        for await (const request of untilStopping(requests, stopping)) {
          const { batchId } = request;
          const settlement = await intake.settle({
            batchId,
            zstd: request.batchZstd,
            bytes: request.batchBytes,
            sha256: request.batchSha256,
          });
          const { detail } = settlement;
          yield create(PublishBatchesResponseSchema, { batchId, outcome: outcomes[settlement.outcome], detail });
        }
      },
      queryUsage: async (request, context) => {
        const question = questionOf(request, callerOf(context));
        return reportMessage(question.tenantId, await billing.usage(question));
      },
      async *listUsageWindows(request, context) {
        const caller = callerOf(context);
        const question = questionOf({ ...request, appId: "" }, caller);
        for await (const { record } of billing.windows(question, caller.signal)) {
          yield fromBinary(UsageWindowSchema, record);
        }
      },
      putPriceBook: async ({ priceBook }) => bookMessage(await billing.putPriceBook(termsOf(priceBook))),
      listPriceBooks: async () => ({ priceBooks: (await billing.priceBooks()).map(bookMessage) }),
    });
}

const outcomes: Readonly<Record<Settlement["outcome"], BatchOutcome>> = {
  accepted: BatchOutcome.ACCEPTED,
  duplicate: BatchOutcome.DUPLICATE,
  quarantined: BatchOutcome.QUARANTINED,
};

interface UsageRequest {
  readonly tenantId: string;
  readonly appId: string;
  readonly vmId: string;
  readonly fromMs: bigint;
  readonly toMs: bigint;
}

/** The tenant is the caller's, not the one that the request names; that they agree is checked here once more. */
function questionOf(request: UsageRequest, caller: Caller): UsageQuestion {
  const { tenantId } = caller;
  if (tenantId === undefined) throw new ServiceError("PRINCIPAL_REQUIRED", "usage is shown to its tenant only");
  if (tenantId !== request.tenantId) {
    throw new ServiceError("TENANT_MISMATCH", `the caller acts for ${tenantId}, the request names another tenant`);
  }
  return {
    tenantId,
    appId: request.appId === "" ? "" : parseId("app", request.appId, "app_id"),
    vmId: request.vmId === "" ? "" : parseId("vm", request.vmId, "vm_id"),
    fromMs: Number(request.fromMs),
    toMs: Number(request.toMs),
  };
}

function termsOf(message: PriceBookMessage | undefined): PriceBookTerms {
  if (message === undefined) throw new ServiceError("INVALID_REQUEST", "price_book: missing");
  return {
    id: parseId("book", message.priceBookId, "price_book.price_book_id"),
    currency: message.currency,
    exponent: message.exponent,
    effectiveFromMs: Number(message.effectiveFromMs),
    prices: message.prices.map(({ meter, amount, perQuantity }) => ({ meter, amount, perQuantity })),
  };
}

function bookMessage(book: PriceBook): PriceBookMessage {
  const { id, currency, exponent, hash } = book;
  const effectiveFromMs = BigInt(book.effectiveFromMs);
  return create(PriceBookSchema, {
    priceBookId: id,
    currency,
    exponent,
    effectiveFromMs,
    prices: [...book.prices],
    hash,
  });
}

function reportMessage(tenantId: string, { report, asOfMs }: UsageAnswer): UsageReportMessage {
  return create(UsageReportSchema, {
    tenantId,
    fromMs: BigInt(report.period.fromMs),
    toMs: BigInt(report.period.toMs),
    apps: report.apps.map((line) => lineMessage(line, report)),
    vms: report.vms.map((line) => lineMessage(line, report)),
    total: money(report.total, report),
    priceBookId: report.book.id,
    priceBookHash: report.book.hash,
    asOfMs: BigInt(asOfMs),
  });
}

function lineMessage(line: UsageLine, report: UsageReport): UsageLineMessage {
  const { memoryByteMs, memoryResidentByteMs, diskByteMs, ...counted } = line.quantities;
  return create(UsageLineSchema, {
    appId: line.appId,
    vmId: line.vmId,
    quantities: {
      ...counted,
      memoryByteMs: memoryByteMs.toString(),
      memoryResidentByteMs: memoryResidentByteMs.toString(),
      diskByteMs: diskByteMs.toString(),
    },
    meters: line.meters.map(({ meter, quantity, unit, amount }) => ({
      meter,
      quantity: quantity.toString(),
      unit,
      amount: money(amount, report),
    })),
    amount: money(line.amount, report),
    samplesExpected: line.samplesExpected,
    samplesSeen: line.samplesSeen,
    gaps: line.gaps.map(({ fromMs, toMs, cause, countersBridged }) => ({
      fromMs: BigInt(fromMs),
      toMs: BigInt(toMs),
      cause: cause as GapCause, // proto3 enums are open
      countersBridged,
    })),
    coveredFromMs: BigInt(line.coveredFromMs),
    coveredToMs: BigInt(line.coveredToMs),
    complete: line.complete,
  });
}

function money(amount: bigint, { currency, exponent }: UsageReport) {
  return create(MoneySchema, { currency, amount: formatAmount(amount, exponent) });
}
