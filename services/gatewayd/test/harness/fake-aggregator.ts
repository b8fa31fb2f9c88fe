import type { ConnectRouter } from "@connectrpc/connect";
import { BillingService, type UsageReport } from "@unkey/api/billing";

/** A billing-aggregator that answers for usage as it is told; invoices it does not offer. */
export class FakeAggregator {
  readonly queries: { readonly tenantId: string; readonly appId: string; readonly vmId: string }[] = [];
  report: Partial<Omit<UsageReport, "$typeName">> = {};

  readonly routes = (router: ConnectRouter): void => {
    router.service(BillingService, {
      queryUsage: ({ tenantId, appId, vmId }) => {
        this.queries.push({ tenantId, appId, vmId });
        return { tenantId, ...this.report };
      },
    });
  };
}
