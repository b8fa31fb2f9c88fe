/** The Connect and gRPC status codes (https://connectrpc.com/docs/protocol#error-codes), as written on the wire. */
export type ErrorCode =
  | "canceled"
  | "unknown"
  | "invalid_argument"
  | "deadline_exceeded"
  | "not_found"
  | "already_exists"
  | "permission_denied"
  | "resource_exhausted"
  | "failed_precondition"
  | "aborted"
  | "out_of_range"
  | "unimplemented"
  | "internal"
  | "unavailable"
  | "data_loss"
  | "unauthenticated";

export interface CatalogueEntry {
  readonly code: ErrorCode;
  /** What the reader of the error can do now: an imperative sentence. */
  readonly nextStep: string;
}

/**
 * Every reason that a service gives for refusing or failing, with its code and next step. The reason is the stable name:
 * clients switch on it, docs list it, messages may be reworded. A reason is never reused for another meaning.
 */
export const errorCatalogue = {
  // Any service
  INVALID_REQUEST: {
    code: "invalid_argument",
    nextStep: "Correct the field that the message names and send it again.",
  },
  MALFORMED_MESSAGE: { code: "invalid_argument", nextStep: "Send a body that the RPC's schema allows." },
  UNIMPLEMENTED: { code: "unimplemented", nextStep: "This release does not offer it; see docs/specification.md." },
  UNAUTHENTICATED: { code: "unauthenticated", nextStep: "Present a valid credential." },
  PERMISSION_DENIED: { code: "permission_denied", nextStep: "Ask an administrator of the tenant for access." },
  TENANT_MISMATCH: { code: "permission_denied", nextStep: "Name the tenant that the credential belongs to." },
  DEADLINE_EXCEEDED: { code: "deadline_exceeded", nextStep: "Try again, with a longer deadline if it repeats." },
  CANCELED: { code: "canceled", nextStep: "Nothing: the caller withdrew the request." },
  SHUTTING_DOWN: { code: "unavailable", nextStep: "Try again in a moment." },
  DEPENDENCY_UNAVAILABLE: {
    code: "unavailable",
    nextStep: "Try again in a moment; `unkey dev status` shows what is down.",
  },
  INTERNAL: { code: "internal", nextStep: "Look for the request id in the service's log and report it." },
  IDEMPOTENCY_KEY_REUSED: {
    code: "already_exists",
    nextStep: "Repeat the first request exactly, or choose another Idempotency-Key.",
  },
  // Virtual machine monitors (packages/vmm) and guests (guest)
  HYPERVISOR_UNAVAILABLE: {
    code: "failed_precondition",
    nextStep: "Install qemu-system-x86 on the host and read the reason in the message.",
  },
  VM_SPEC_INVALID: { code: "invalid_argument", nextStep: "Correct the part of the VM that the message names." },
  VM_LAUNCH_FAILED: {
    code: "internal",
    nextStep: "Read the monitor's own words in the message and in monitor.log of the VM's folder.",
  },
  VM_STATE_CONFLICT: {
    code: "failed_precondition",
    nextStep: "Bring the VM into a state that allows the action first.",
  },
  VM_GONE: { code: "failed_precondition", nextStep: "Boot the VM again: its monitor process has ended." },
  VMM_UNAVAILABLE: { code: "unavailable", nextStep: "Try again; destroy and recreate the VM if it repeats." },
  GUEST_ASSETS_UNAVAILABLE: {
    code: "failed_precondition",
    nextStep: "Follow the command in the message, then try again.",
  },
  GUEST_CONFIG_INVALID: { code: "invalid_argument", nextStep: "Correct the field that the message names." },
} as const satisfies Record<string, CatalogueEntry>;

export type ErrorReason = keyof typeof errorCatalogue;
