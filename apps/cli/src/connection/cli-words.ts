import { type ErrorReason, errorCatalogue } from "@unkey/base";

/** The catalogue speaks to every client of the API. Where this command line has words of its own, they are here. */
export const cliNextSteps: Partial<Readonly<Record<ErrorReason, string>>> = {
  INVALID_REQUEST: "Correct what the message names and run the command again; --help shows what it takes.",
  MALFORMED_MESSAGE: "Check with `unkey platform` that the platform is of the release of this command.",
  MESSAGE_TOO_LARGE: "Give less: what --env, --env-file and --command hold is too much together.",
  UNAUTHENTICATED: "Give a valid API key: `unkey login` keeps one, --api-key-file and UNKEY_API_KEY name one.",
  DEADLINE_EXCEEDED: "Try again; `unkey dev status` shows what runs on this host.",
  RATE_LIMITED: "Wait a few seconds, then run the command again.",
  TOO_MANY_STREAMS: "End commands that follow something (-f, watch), then try again.",
  IMAGE_NOT_FOUND: "Check the name and tag; for a private image give the login with --registry-user.",
  REGISTRY_CREDENTIALS_REQUIRED:
    "Give the login with --registry-user; its password comes from UNKEY_REGISTRY_PASSWORD or stdin.",
  REGISTRY_CREDENTIALS_REJECTED: "Correct --registry-user or the password in UNKEY_REGISTRY_PASSWORD.",
  REGISTRY_CREDENTIALS_UNUSABLE:
    "Deploy with --registry-user and a login of your own, or have the operator read builderd's log.",
  REGISTRY_RATE_LIMITED:
    "Wait as long as the message says, or give a login that has a higher limit with --registry-user.",
  CREDENTIALS_LOST: "Deploy again with --registry-user: a login is never stored, so a restart forgets it.",
  UPLOAD_NOT_FOUND: "Run `unkey deploy` again: uploads expire.",
  IMAGE_NO_COMMAND: "Give the image an ENTRYPOINT or CMD, or name the program with --command.",
  BUILD_QUOTA_EXCEEDED:
    "Wait until the instant that the message names, or ask the platform's operator for more; `unkey builds quota` shows what is left.",
  EXCEEDS_HOSTS: "Ask for less with --memory, --vcpus or --disk: the message names the capacity.",
  VM_TOO_LARGE: "Ask for less with --memory, --vcpus or --disk: the message names the capacity.",
  HOSTS_FULL: "Stop or delete an app, ask for less with --memory, --vcpus, --disk or --vms, or add a host.",
  GUEST_CRASHED:
    "Read the last console lines: the guest kernel gave up. With little memory, ask for more with --memory.",
  APP_UNHEALTHY:
    "Make the path answer below 500 within the deadline, or deploy with another --health-path or --health-deadline.",
  DEPLOYMENT_IN_PROGRESS:
    "Wait for the deployment that the message names (`unkey deployments watch`), or give it up (`unkey deployments cancel`).",
};

/** What fields of requests are called here. */
export const cliFields: Readonly<Record<string, string>> = {
  app: "the app",
  "image.reference": "the image",
  "image.upload_id": "the upload",
  "credentials.username": "--registry-user",
  "credentials.password": "the registry's password",
  env: "--env",
  "env.name": "--env",
  "env.value": "--env",
  port: "--port",
  argv: "--command",
  "resources.vcpu_count": "--vcpus",
  "resources.memory_bytes": "--memory",
  "resources.disk_bytes": "--disk",
  vm_count: "--vms",
  "health_check.http_path": "--health-path",
  "health_check.deadline_ms": "--health-deadline",
  build_id: "the build's id",
  deployment_id: "the deployment's id",
  vm_id: "the VM's id",
  api_key_id: "the key's id",
  page_size: "--limit",
  tail_lines: "--tail",
};

/** The next step in words of this command line, unless the service gave one that fits the very case. */
export function nextStepHere(reason: string, nextStep: string): string {
  if (!Object.hasOwn(errorCatalogue, reason)) return nextStep;
  const known = reason as ErrorReason;
  return nextStep === errorCatalogue[known].nextStep ? (cliNextSteps[known] ?? nextStep) : nextStep;
}

/** `message` with the fields that it begins its sentences with, as `vm_count: …; env[3].value: …`, called what they are called here. */
export function messageHere(message: string): string {
  return message
    .split("; ")
    .map((sentence) =>
      sentence
        .replace(/^([a-z]\w*(?:\[\d+\]|\.[a-z]\w*)*): /, (whole: string, path: string) => {
          const field = cliFields[path.replaceAll(/\[\d+\]/g, "")];
          return field === undefined ? whole : `${field}: `;
        })
        .replace(/ \[[a-z0-9_.]+\]$/, ""),
    )
    .join("; ");
}
