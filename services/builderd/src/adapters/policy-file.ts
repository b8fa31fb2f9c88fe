import type { TenantId } from "@unkey/base";
import type { Logger } from "@unkey/daemon";
import { policyDigest } from "../domain/policy.ts";
import { defaultPolicyDocument, type PolicyDocument, parsePolicyDocument } from "../domain/policy-document.ts";
import type { BuildRules, RulesSource } from "../ports.ts";
import { OperatorFile } from "./operator-file.ts";

/**
 * The operator's policy file: builds that begin after a change are made under it. A file that has become wrong changes nothing;
 * the log and `/health` name the mistakes.
 */
export class PolicyFile implements RulesSource {
  readonly #file: OperatorFile<PolicyDocument> | undefined;

  /** Without a path the defaults hold. Throws every mistake, or why the file cannot be read. */
  constructor(path: string | undefined, log: Logger) {
    if (path !== undefined) {
      this.#file = new OperatorFile({ path, name: "the build policy", parse: parsePolicyDocument, log });
    }
  }

  rulesOf(tenantId: TenantId): BuildRules {
    const document = this.#file?.value ?? defaultPolicyDocument;
    const { policy, quota } = document.tenants.get(tenantId) ?? document.platform;
    return { policy, policyDigest: policyDigest(policy), quota };
  }

  /** Throws while the file is not the one that holds. */
  check(): void {
    this.#file?.check();
  }
}
