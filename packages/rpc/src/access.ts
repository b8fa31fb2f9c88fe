import { type DescMethod, getOption, hasOption } from "@bufbuild/protobuf";
import { access, TenantRule } from "@unkey/api/options";
import { ServiceError } from "@unkey/base";

/** Who may call a method and for whom, from its `(unkey.options.v1.access)` option. */
export interface AccessRule {
  readonly callers: readonly string[];
  readonly tenant: "required" | "principal-or-service" | "none";
}

const tenantRules = new Map<TenantRule, AccessRule["tenant"]>([
  [TenantRule.REQUIRED, "required"],
  [TenantRule.PRINCIPAL_OR_SERVICE, "principal-or-service"],
  [TenantRule.NONE, "none"],
]);

/** Undefined when the method does not declare both halves: it is then closed to everybody. */
export function accessRuleOf(method: DescMethod): AccessRule | undefined {
  if (!hasOption(method, access)) return undefined;
  const { callers, tenant } = getOption(method, access);
  const rule = tenantRules.get(tenant);
  return callers.length === 0 || rule === undefined ? undefined : { callers, tenant: rule };
}

/** Throws CALLER_NOT_ALLOWED or PRINCIPAL_REQUIRED. */
export function authorize(
  method: DescMethod,
  call: { readonly service: string; readonly hasPrincipal: boolean },
): void {
  const name = `${method.parent.typeName}/${method.name}`;
  const rule = accessRuleOf(method);
  if (rule === undefined) {
    throw new ServiceError("CALLER_NOT_ALLOWED", `${name} does not declare who may call it, so nobody may`);
  }
  if (!rule.callers.includes(call.service)) {
    throw new ServiceError("CALLER_NOT_ALLOWED", `${call.service} may not call ${name}`);
  }
  if (rule.tenant === "required" && !call.hasPrincipal) {
    throw new ServiceError("PRINCIPAL_REQUIRED", `${name} acts for a tenant and needs a signed principal`);
  }
}
