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
  // Calls between services (packages/rpc)
  TLS_REQUIRED: { code: "failed_precondition", nextStep: "Use https and present a certificate of this platform." },
  CLIENT_CERTIFICATE_REFUSED: {
    code: "unauthenticated",
    nextStep: "Present a certificate that this platform's authority issued and that has not expired.",
  },
  CALLER_NOT_ALLOWED: {
    code: "permission_denied",
    nextStep: "Call it as one of the services that the method's access option in proto/ names.",
  },
  PRINCIPAL_REQUIRED: {
    code: "unauthenticated",
    nextStep: "Forward the signed principal that the gateway made, in the unkey-principal header.",
  },
  PRINCIPAL_INVALID: { code: "unauthenticated", nextStep: "Send the request through the gateway again." },
  MESSAGE_TOO_LARGE: {
    code: "resource_exhausted",
    nextStep: "Send less in one message; large content travels in chunks.",
  },
  // What a peer of another release said, for a reason that this release does not know
  NOT_FOUND: { code: "not_found", nextStep: "Check the name or id." },
  ALREADY_EXISTS: { code: "already_exists", nextStep: "Choose another name, or use what exists." },
  FAILED_PRECONDITION: { code: "failed_precondition", nextStep: "Change the state that the message names first." },
  ABORTED: { code: "aborted", nextStep: "Read the current state and try again." },
  RESOURCE_EXHAUSTED: { code: "resource_exhausted", nextStep: "Wait a moment, or ask for less." },
  DATA_LOSS: { code: "data_loss", nextStep: "Look for the request id in the service's log and report it." },
  // VMs of a host (services/metald)
  VM_NOT_FOUND: { code: "not_found", nextStep: "Check the id; `unkey vms` lists the VMs that there are." },
  RESERVATION_ID_REUSED: { code: "already_exists", nextStep: "Choose a new reservation_id." },
  VM_ID_REUSED: { code: "already_exists", nextStep: "Repeat the first request exactly, or choose another vm_id." },
  VM_TOO_LARGE: {
    code: "invalid_argument",
    nextStep: "Ask for less than the host's capacity, which the message states.",
  },
  HOST_FULL: {
    code: "resource_exhausted",
    nextStep: "Delete VMs that are not needed, or try again when some have ended.",
  },
  HOST_DISK_FULL: { code: "resource_exhausted", nextStep: "Free space in metald's data directory, then try again." },
  HOST_ADDRESSES_EXHAUSTED: {
    code: "resource_exhausted",
    nextStep: "Delete VMs that are not needed, or give metald a larger UNKEY_METALD_SUBNET.",
  },
  HOST_SUBNET_TAKEN: {
    code: "failed_precondition",
    nextStep: "Set UNKEY_METALD_SUBNET to a network that nothing on this host routes.",
  },
  HOST_DRAINING: { code: "unavailable", nextStep: "Place the VM on another host." },
  HOST_RESOURCE_FAILED: { code: "internal", nextStep: "Read metald's log for the host program's own words." },
  VM_BUSY: { code: "resource_exhausted", nextStep: "Wait for the VM's earlier requests to end, then try again." },
  VM_BOOT_TIMEOUT: {
    code: "deadline_exceeded",
    nextStep: "Read the last console lines; try again on a less busy host.",
  },
  VM_BOOT_INTERRUPTED: { code: "aborted", nextStep: "Nothing: the VM was stopped or deleted while it booted." },
  VM_DIED: { code: "internal", nextStep: "Read the last console lines and monitor.log of the VM's folder." },
  GUEST_CRASHED: {
    code: "failed_precondition",
    nextStep: "Read the last console lines: the guest kernel gave up. With little memory, ask for more.",
  },
  GUEST_FAILED: { code: "failed_precondition", nextStep: "Correct the program or image as the message says." },
  PROVENANCE_MISSING: {
    code: "failed_precondition",
    nextStep: "Build the image again: every root filesystem that builderd stores has its provenance attached.",
  },
  PROVENANCE_INVALID: {
    code: "failed_precondition",
    nextStep:
      "Build the image again; after a change of keys, add the earlier key to the file that UNKEY_METALD_PROVENANCE_KEYS_FILE names.",
  },
  METERING_REFUSED: { code: "resource_exhausted", nextStep: "Give billaged room for its log, then boot the VM again." },
  // Certificates
  AUTHORITY_UNUSABLE: {
    code: "failed_precondition",
    nextStep: "Correct what the message names; the directory may be moved away to have a new authority made.",
  },
  IDENTITY_UNUSABLE: {
    code: "failed_precondition",
    nextStep:
      "Issue the service a certificate: `unkey dev up` does, or point its IDENTITY_DIR at a directory that has one.",
  },
  // Images
  IMAGE_REFERENCE_INVALID: {
    code: "invalid_argument",
    nextStep: "Write the image as [registry/]name[:tag] or [registry/]name@sha256:…",
  },
  IMAGE_NOT_FOUND: {
    code: "not_found",
    nextStep: "Check the name and tag; a private image also needs registry credentials.",
  },
  REGISTRY_CREDENTIALS_REQUIRED: {
    code: "permission_denied",
    nextStep: "Give a user name and password (or token) for the registry.",
  },
  REGISTRY_CREDENTIALS_REJECTED: {
    code: "permission_denied",
    nextStep: "Correct the registry user name or password.",
  },
  REGISTRY_CREDENTIALS_UNUSABLE: {
    code: "failed_precondition",
    nextStep: "Deploy with a login of your own, or have the operator read builderd's log.",
  },
  REGISTRY_ACCESS_DENIED: {
    code: "permission_denied",
    nextStep: "Ask the registry's owner for read access to the repository.",
  },
  REGISTRY_INSECURE: {
    code: "failed_precondition",
    nextStep: "Give the registry TLS, or list its host in UNKEY_BUILDERD_PLAIN_HTTP_REGISTRIES.",
  },
  REGISTRY_ADDRESS_REFUSED: {
    code: "permission_denied",
    nextStep:
      "Name a registry on builderd's own host as localhost, or list it in UNKEY_BUILDERD_PLAIN_HTTP_REGISTRIES.",
  },
  REGISTRY_CERTIFICATE_UNTRUSTED: {
    code: "failed_precondition",
    nextStep:
      "Give the registry a certificate that builderd's host trusts, or name its authority in UNKEY_BUILDERD_REGISTRY_CA_FILE.",
  },
  REGISTRY_UNAVAILABLE: { code: "unavailable", nextStep: "Check that the registry can be reached, then try again." },
  REGISTRY_RATE_LIMITED: {
    code: "resource_exhausted",
    nextStep: "Wait as long as the message says, or pull with credentials that have a higher limit.",
  },
  REGISTRY_PROTOCOL_VIOLATED: {
    code: "failed_precondition",
    nextStep: "Check that the address is an OCI registry; report the message to its operator.",
  },
  IMAGE_DIGEST_MISMATCH: {
    code: "invalid_argument",
    nextStep: "Push or save the image again: its content does not match its digest.",
  },
  IMAGE_PLATFORM_UNAVAILABLE: {
    code: "failed_precondition",
    nextStep: "Build and push the image for the platform that the message names.",
  },
  IMAGE_UNSUPPORTED: {
    code: "failed_precondition",
    nextStep: "Push the image as OCI or Docker schema 2 with tar layers.",
  },
  IMAGE_MANIFEST_INVALID: { code: "invalid_argument", nextStep: "Push the image again with a current tool." },
  IMAGE_LAYER_INVALID: {
    code: "invalid_argument",
    nextStep: "Rebuild the image; the message names the layer and entry.",
  },
  IMAGE_TOO_LARGE: { code: "resource_exhausted", nextStep: "Make the image smaller: the message names the limit." },
  IMAGE_PRIVILEGED_FILE: {
    code: "failed_precondition",
    nextStep: "Take the bit or capability off the file in the image, or let the build policy keep or strip it.",
  },
  LAYER_CACHE_DAMAGED: {
    code: "data_loss",
    nextStep: "Build again: the damaged layer is dropped and fetched anew.",
  },
  IMAGE_NO_COMMAND: {
    code: "failed_precondition",
    nextStep: "Give the image an ENTRYPOINT or CMD, or deploy with a command.",
  },
  IMAGE_SIGNATURE_MISSING: {
    code: "failed_precondition",
    nextStep: "Sign the image with a key that the build policy lists, and push the signature beside it.",
  },
  IMAGE_SIGNATURE_INVALID: {
    code: "failed_precondition",
    nextStep: "Sign this very image again with a key that the build policy lists.",
  },
  IMAGE_USER_UNKNOWN: {
    code: "failed_precondition",
    nextStep: "Name a USER that the image's /etc/passwd has, or use numbers.",
  },
  IMAGE_ARCHIVE_INVALID: {
    code: "invalid_argument",
    nextStep: "Make an archive of one image: `docker save -o app.tar <image>`, or `skopeo copy … oci-archive:app.tar`.",
  },
  ROOTFS_TOOL_MISSING: {
    code: "failed_precondition",
    nextStep: "Install the package that the message names on the host.",
  },
  ROOTFS_DISK_FULL: {
    code: "resource_exhausted",
    nextStep: "Free space in builderd's data directory, then try again.",
  },
  ROOTFS_WRITE_FAILED: { code: "internal", nextStep: "Read builderd's log for the tool's own words." },
  // Builds
  IMAGE_NOT_ALLOWED: {
    code: "permission_denied",
    nextStep: "Use an image that the policy allows, or ask the platform's operator to allow this one.",
  },
  BUILD_QUOTA_EXCEEDED: {
    code: "resource_exhausted",
    nextStep: "Wait until the instant that the message names, or ask the platform's operator for a higher limit.",
  },
  BUILD_NOT_FOUND: { code: "not_found", nextStep: "Check the id; `unkey builds` lists the tenant's builds." },
  BUILD_NOT_COMPLETED: {
    code: "failed_precondition",
    nextStep: "Wait until the build has completed; one that failed made nothing to verify.",
  },
  BUILD_DOCUMENT_GONE: {
    code: "not_found",
    nextStep: "Deploy the image again: the build of it has documents of its own.",
  },
  BUILD_QUEUE_FULL: { code: "resource_exhausted", nextStep: "Wait until some of the builds that wait have ended." },
  BUILD_TIMED_OUT: {
    code: "deadline_exceeded",
    nextStep: "Make the image smaller, or raise UNKEY_BUILDERD_BUILD_TIMEOUT.",
  },
  BUILD_INTERRUPTED: {
    code: "aborted",
    nextStep: "Build again; if it repeats, this image ends the builder: read its log.",
  },
  BUILD_MEMORY_EXCEEDED: {
    code: "resource_exhausted",
    nextStep: "Put fewer files into the image, or raise UNKEY_BUILDERD_WORKER_MEMORY.",
  },
  BUILD_DISK_EXCEEDED: {
    code: "resource_exhausted",
    nextStep: "Make the image smaller, or raise UNKEY_BUILDERD_WORKER_DISK.",
  },
  BUILD_WORKER_FAILED: { code: "internal", nextStep: "Build again; if it repeats, read builderd's log." },
  BUILD_WORKER_MISBEHAVED: {
    code: "internal",
    nextStep:
      "Do not trust this image: reading it took over the process that read it. builderd's log has what is known.",
  },
  UPLOAD_NOT_FOUND: { code: "not_found", nextStep: "Upload the archive again: uploads expire." },
  UPLOAD_LIMIT_REACHED: { code: "resource_exhausted", nextStep: "Wait until earlier uploads have ended or expired." },
  // The public API and its ingress (services/gatewayd)
  ROUTE_UNKNOWN: { code: "not_found", nextStep: "Use a path of GET /openapi.json." },
  METHOD_NOT_ALLOWED: { code: "invalid_argument", nextStep: "Use one of the methods in the Allow header." },
  UNSUPPORTED_MEDIA_TYPE: { code: "invalid_argument", nextStep: "Send the content type that the message names." },
  BODY_TOO_LARGE: { code: "resource_exhausted", nextStep: "Send less: the message names the limit." },
  TOO_MANY_STREAMS: { code: "resource_exhausted", nextStep: "End streams that nobody reads, then try again." },
  TOO_MANY_API_KEYS: { code: "resource_exhausted", nextStep: "Revoke keys that nobody uses." },
  RATE_LIMITED: { code: "resource_exhausted", nextStep: "Wait as long as the Retry-After header says." },
  SCOPE_MISSING: {
    code: "permission_denied",
    nextStep: "Use an API key that has the scope, or have one made by somebody who does.",
  },
  SCOPE_UNKNOWN: { code: "invalid_argument", nextStep: "Use the scopes that the message lists." },
  API_KEY_NOT_FOUND: { code: "not_found", nextStep: "List the tenant's keys with `unkey keys list`." },
  APP_NOT_FOUND: { code: "not_found", nextStep: "List the apps with `unkey apps`." },
  APP_NAME_TAKEN: {
    code: "already_exists",
    nextStep: "Choose another name with --app: names are unique on the platform.",
  },
  APP_NAME_NEEDED: { code: "invalid_argument", nextStep: "Name the app with --app." },
  APP_NOT_DEPLOYED: { code: "failed_precondition", nextStep: "Deploy the app with `unkey deploy` first." },
  APP_CHANGED_MEANWHILE: { code: "aborted", nextStep: "Look at the app's state and try again." },
  DEPLOYMENT_NOT_FOUND: { code: "not_found", nextStep: "List the deployments with `unkey deployments`." },
  DEPLOYMENT_IN_PROGRESS: {
    code: "failed_precondition",
    nextStep: "Wait for the deployment that the message names, or cancel it.",
  },
  DEPLOYMENT_NOT_CANCELLABLE: { code: "failed_precondition", nextStep: "Deploy again, or stop the app." },
  TOO_MANY_DEPLOYMENTS: { code: "resource_exhausted", nextStep: "Wait until a running deployment has ended." },
  CREDENTIALS_LOST: {
    code: "failed_precondition",
    nextStep: "Deploy again with the registry login: it is never stored, so a restart forgets it.",
  },
  EXCEEDS_HOSTS: { code: "failed_precondition", nextStep: "Ask for no more than the capacity that the message names." },
  HOSTS_FULL: { code: "resource_exhausted", nextStep: "Stop or delete an app, or add a host." },
  HOST_UNREACHABLE: {
    code: "unavailable",
    nextStep: "Check that metald runs on the host; `unkey dev status` shows it.",
  },
  APP_EXITED: { code: "failed_precondition", nextStep: "Read the app's last lines, correct it and deploy again." },
  APP_NOT_LISTENING: {
    code: "failed_precondition",
    nextStep: "Make the app listen on 0.0.0.0 and the port in the message, or deploy with --port and the one it uses.",
  },
  APP_UNHEALTHY: {
    code: "failed_precondition",
    nextStep: "Make the health path answer below 500 within the deadline, or deploy with another path.",
  },
  // The platform's own image registry (services/gatewayd)
  REPOSITORY_NAME_INVALID: {
    code: "invalid_argument",
    nextStep: "Name the repository with lower case letters, digits, dots, dashes, underscores and slashes.",
  },
  REPOSITORY_NOT_FOUND: { code: "not_found", nextStep: "Push an image first; GET /v2/_catalog lists what was pushed." },
  BLOB_NOT_FOUND: { code: "not_found", nextStep: "Push the image again." },
  BLOB_IN_USE: { code: "failed_precondition", nextStep: "Delete the manifest that the message names first." },
  BLOB_TOO_LARGE: {
    code: "resource_exhausted",
    nextStep: "Make the layer smaller, or raise UNKEY_GATEWAYD_BLOB_LIMIT.",
  },
  BLOB_SIZE_MISMATCH: { code: "invalid_argument", nextStep: "Send as many bytes as the headers say." },
  BLOB_UPLOAD_NOT_FOUND: { code: "not_found", nextStep: "Begin the upload again: it has ended or expired." },
  BLOB_UPLOAD_OUT_OF_ORDER: {
    code: "out_of_range",
    nextStep: "Go on at the byte after the Range header of this answer.",
  },
  TOO_MANY_BLOB_UPLOADS: { code: "resource_exhausted", nextStep: "Finish or cancel uploads that are open." },
  BLOB_RANGE_UNSATISFIABLE: { code: "out_of_range", nextStep: "Ask for a range within the blob's length." },
  DIGEST_INVALID: { code: "invalid_argument", nextStep: "Send the sha256 digest of exactly the bytes that are meant." },
  MANIFEST_NOT_FOUND: {
    code: "not_found",
    nextStep: "Check the tag or digest; tags/list shows the tags that there are.",
  },
  MANIFEST_INVALID: {
    code: "invalid_argument",
    nextStep: "Push an OCI or Docker schema 2 manifest, as current tools make them.",
  },
  MANIFEST_TOO_LARGE: { code: "resource_exhausted", nextStep: "Make the manifest smaller: 4 MiB is the limit." },
  MANIFEST_BLOB_UNKNOWN: {
    code: "invalid_argument",
    nextStep: "Push what the manifest refers to first, then the manifest.",
  },
  MANIFEST_IN_USE: { code: "failed_precondition", nextStep: "Delete the index that the message names first." },
  REGISTRY_QUOTA_EXCEEDED: {
    code: "resource_exhausted",
    nextStep: "Delete images that are not needed, or raise UNKEY_GATEWAYD_REGISTRY_QUOTA.",
  },
  // The meter (services/billaged)
  METER_LOG_FULL: {
    code: "resource_exhausted",
    nextStep: "Bring the billing aggregator back, or raise UNKEY_BILLAGED_LOG_LIMIT on the host.",
  },
  METER_LOG_FAILED: { code: "unavailable", nextStep: "Check the disk that holds billaged's data directory." },
  STALE_HOST_EPOCH: {
    code: "failed_precondition",
    nextStep: "Stop the older metald: one host has one at a time.",
  },
  SERIES_ENDED: { code: "failed_precondition", nextStep: "Start the VM as a new incarnation." },
  SERIES_CONFLICT: {
    code: "already_exists",
    nextStep: "Announce the incarnation exactly as before, or start a new one.",
  },
  // Assets (services/assetmanagerd)
  ASSET_NOT_FOUND: {
    code: "not_found",
    nextStep: "Check the asset id; list the tenant's assets to see what there is.",
  },
  ASSET_NOT_AVAILABLE: { code: "failed_precondition", nextStep: "Upload the asset again, or use another one." },
  ASSET_IN_USE: {
    code: "failed_precondition",
    nextStep: "Delete the VMs that hold the asset, or the assets that it is part of, first.",
  },
  ASSET_SOURCE_REFUSED: {
    code: "failed_precondition",
    nextStep:
      "Send the bytes, or put the file below a directory in UNKEY_ASSETMANAGERD_INTAKE_ROOTS on its file system.",
  },
  ASSET_DIGEST_MISMATCH: { code: "invalid_argument", nextStep: "Upload it again, with the digest of what is sent." },
  ASSET_SIZE_MISMATCH: { code: "invalid_argument", nextStep: "Upload it again, with the length of what is sent." },
  ASSET_TOO_LARGE: {
    code: "resource_exhausted",
    nextStep: "Make the asset smaller, or raise UNKEY_ASSETMANAGERD_ASSET_LIMIT.",
  },
  ASSET_QUOTA_EXCEEDED: { code: "resource_exhausted", nextStep: "Delete assets that are not needed any more." },
  BLOB_STORE_UNAVAILABLE: {
    code: "unavailable",
    nextStep: "Try again in a moment; /health of assetmanagerd tells whether its S3 service answers.",
  },
  BLOB_STORE_REFUSED: {
    code: "failed_precondition",
    nextStep: "Check the endpoint, bucket, region and keys of assetmanagerd's S3 settings.",
  },
  BLOB_KEY_INVALID: {
    code: "failed_precondition",
    nextStep: "Give assetmanagerd the key that sealed its blobs: 32 bytes in base64, in a file of mode 0600.",
  },
  ASSET_STORE_FULL: { code: "resource_exhausted", nextStep: "Free space in assetmanagerd's data directory." },
  ASSET_STORE_BUSY: { code: "resource_exhausted", nextStep: "Try again when another upload has finished." },
  ASSET_CORRUPT: { code: "data_loss", nextStep: "Upload or build the asset again: the stored bytes are wrong." },
  UPLOAD_OFFSET_MISMATCH: {
    code: "out_of_range",
    nextStep: "Continue from the offset that the metadata names as receivedBytes.",
  },
  UPLOAD_BUSY: { code: "aborted", nextStep: "Wait until the other call for this upload has ended, then try again." },
  UPLOAD_KEY_REUSED: {
    code: "already_exists",
    nextStep: "Begin the upload exactly as before, or choose another upload key.",
  },
  ASSET_NOT_UPLOADING: { code: "failed_precondition", nextStep: "Begin another upload: this one has ended." },
  BUILDS_NOT_CONFIGURED: {
    code: "failed_precondition",
    nextStep: "Set UNKEY_ASSETMANAGERD_BUILDERD_ADDRESS, or deploy the image through the gateway.",
  },
  LEASE_NOT_FOUND: { code: "not_found", nextStep: "Prepare the assets again: the lease has ended." },
  LEASE_KEY_REUSED: {
    code: "already_exists",
    nextStep: "Repeat the first request exactly, or choose another lease key.",
  },
  STAGING_TARGET_REFUSED: {
    code: "invalid_argument",
    nextStep: "Stage below a directory in UNKEY_ASSETMANAGERD_STAGING_ROOTS, without symbolic links on the way.",
  },
  STAGING_FAILED: { code: "internal", nextStep: "Read assetmanagerd's log for the system's own words." },
  // Usage and its price (services/billing-aggregator)
  BATCH_DAMAGED: { code: "invalid_argument", nextStep: "Send the batch again as it stands in the log." },
  INBOX_FULL: {
    code: "resource_exhausted",
    nextStep: "Give the aggregator's data directory room, or raise UNKEY_BILLING_AGGREGATOR_INBOX_LIMIT.",
  },
  PRICE_BOOK_INVALID: {
    code: "invalid_argument",
    nextStep: "Correct the part of the price book that the message names.",
  },
  PRICE_BOOK_EXISTS: {
    code: "already_exists",
    nextStep: "Choose another price_book_id and effective_from_ms: a book is never changed.",
  },
  USAGE_SPANS_CURRENCIES: {
    code: "failed_precondition",
    nextStep: "Ask for each side of the instant in the message by itself.",
  },
  USAGE_TOO_LARGE: { code: "resource_exhausted", nextStep: "Ask for one app or VM, or for a shorter period." },
} as const satisfies Record<string, CatalogueEntry>;

export type ErrorReason = keyof typeof errorCatalogue;
