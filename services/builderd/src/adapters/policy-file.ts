import { readFileSync, statSync } from "node:fs";
import { formatBytes, mib, type TenantId } from "@unkey/base";
import type { Logger } from "@unkey/daemon";
import { policyDigest } from "../domain/policy.ts";
import { defaultPolicyDocument, type PolicyDocument, parsePolicyDocument } from "../domain/policy-document.ts";
import type { BuildRules, RulesSource } from "../ports.ts";

const maxFileBytes = mib;

/**
 * The operator's policy file, read again whenever it has changed: builds that begin afterwards are made under it. A file that
 * has become wrong changes nothing: the last right one holds, the log and `/health` name the mistakes. At the start there
 * is no last one, so a wrong file is refused there.
 */
export class PolicyFile implements RulesSource {
  readonly #path: string | undefined;
  readonly #log: Logger;
  #version = "";
  #document: PolicyDocument = defaultPolicyDocument;
  #problem: Error | undefined;

  /** Without a path the defaults hold. Throws PolicyMistakes, or why the file cannot be read. */
  constructor(path: string | undefined, log: Logger) {
    this.#path = path;
    this.#log = log;
    this.#refresh();
    if (this.#problem !== undefined) throw this.#problem;
  }

  rulesOf(tenantId: TenantId): BuildRules {
    this.#refresh();
    const { policy, quota } = this.#document.tenants.get(tenantId) ?? this.#document.platform;
    return { policy, policyDigest: policyDigest(policy), quota };
  }

  /** Throws while the file is not the one that holds. */
  check(): void {
    this.#refresh();
    if (this.#problem !== undefined) throw this.#problem;
  }

  #refresh(): void {
    const path = this.#path;
    if (path === undefined) return;
    let version = "";
    try {
      const { mtimeNs, ctimeNs, size, ino } = statSync(path, { bigint: true });
      version = `${ino} ${size} ${mtimeNs} ${ctimeNs}`;
      if (version === this.#version) return;
      if (size > maxFileBytes) throw new Error(`is over ${formatBytes(maxFileBytes)}`);
      this.#document = parsePolicyDocument(readFileSync(path, "utf8"));
      this.#problem = undefined;
      this.#version = version;
      this.#log.info("build policy read", { path, tenants: this.#document.tenants.size });
    } catch (cause) {
      const said = cause instanceof Error ? cause.message : String(cause);
      const problem = new Error(`the build policy ${path}: ${said}`, { cause });
      if (problem.message !== this.#problem?.message) {
        this.#log.error("build policy refused; the last right one holds", { path, error: problem });
      }
      this.#problem = problem;
      this.#version = version; // looked at again when it changes; a file that cannot be found, each time
    }
  }
}
