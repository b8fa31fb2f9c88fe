import { mib, ServiceError } from "@unkey/base";
import { apiFlags, command, text, word } from "../../command.ts";
import { appName } from "../../deploy/app-name.ts";
import { minMemoryBytes, sizeAtLeast } from "../../deploy/resources.ts";
import { wholeNumber } from "../../numbers.ts";

export const deploy = command({
  load: async () => (await import("./deploy.ts")).deploy,
  parameters: {
    flags: {
      app: {
        kind: "parsed",
        parse: appName,
        brief: "Name of the app (without it the image's or the built directory's; needed for archives and layouts)",
        optional: true,
        placeholder: "name",
      },
      env: {
        kind: "parsed",
        parse: text,
        brief: "NAME=value for the app, or NAME to pass on ours; may be repeated",
        optional: true,
        variadic: true,
        placeholder: "NAME=value",
      },
      envFile: {
        kind: "parsed",
        parse: text,
        brief: "File of NAME=value lines; may be repeated",
        optional: true,
        variadic: true,
        placeholder: "path",
      },
      port: {
        kind: "parsed",
        parse: (input: string) => wholeNumber(input, "--port", { min: 1, max: 65_535 }),
        brief: "TCP port that the app listens on, handed to it as PORT (the image's without it)",
        optional: true,
        placeholder: "port",
      },
      memory: {
        kind: "parsed",
        parse: (input: string) => sizeAtLeast(input, "--memory", minMemoryBytes),
        brief: "Memory of the VM, at least 96MiB (256MiB)",
        optional: true,
        placeholder: "size",
      },
      vcpus: {
        kind: "parsed",
        parse: (input: string) => wholeNumber(input, "--vcpus", { min: 1, max: 32 }),
        brief: "Virtual CPUs (1)",
        optional: true,
        placeholder: "count",
      },
      disk: {
        kind: "parsed",
        parse: (input: string) => sizeAtLeast(input, "--disk", 16 * mib),
        brief: "Size of the private writable layer (1GiB)",
        optional: true,
        placeholder: "size",
      },
      vms: {
        kind: "parsed",
        parse: (input: string) => wholeNumber(input, "--vms", { min: 1, max: 64 }),
        brief: "How many VMs serve the app (1)",
        optional: true,
        placeholder: "count",
      },
      command: {
        kind: "parsed",
        parse: text,
        brief: "Program or argument instead of the image's own; repeat it for each one",
        optional: true,
        variadic: true,
        placeholder: "argument",
      },
      healthPath: {
        kind: "parsed",
        parse: healthPath,
        brief: "Path that must answer below 500 (a TCP connection is enough without it)",
        optional: true,
        placeholder: "path",
      },
      healthDeadline: {
        kind: "parsed",
        parse: (input: string) => wholeNumber(input, "--health-deadline", { min: 1, max: 600 }),
        brief: "Seconds within which the app must be healthy (30)",
        optional: true,
        placeholder: "seconds",
      },
      registryUser: {
        kind: "parsed",
        parse: text,
        brief: "User at the registry; its password comes from UNKEY_REGISTRY_PASSWORD or stdin",
        optional: true,
        placeholder: "name",
      },
      file: {
        kind: "parsed",
        parse: text,
        brief: "Dockerfile of a directory that is built (Dockerfile or Containerfile in it)",
        optional: true,
        placeholder: "path",
      },
      target: {
        kind: "parsed",
        parse: text,
        brief: "Stage of the Dockerfile to build",
        optional: true,
        placeholder: "stage",
      },
      buildArg: {
        kind: "parsed",
        parse: text,
        brief: "NAME=value for the Dockerfile's ARG, or NAME to pass on ours; may be repeated",
        optional: true,
        variadic: true,
        placeholder: "NAME=value",
      },
      secret: {
        kind: "parsed",
        parse: text,
        brief: "id=name,src=path of a file for RUN --mount=type=secret; may be repeated",
        optional: true,
        variadic: true,
        placeholder: "id=…,src=…",
      },
      insecureRegistry: { kind: "boolean", brief: "Allow plain http to the registry", default: false },
      detach: { kind: "boolean", brief: "Do not wait for it", default: false },
      ...apiFlags,
    },
    aliases: { a: "app", e: "env", p: "port", m: "memory", d: "detach", f: "file" },
    positional: word("image", "Reference in a registry, directory with a Dockerfile, image archive, or OCI layout"),
  },
  docs: { brief: "Turn an image into an app behind an https address" },
});

/** The API has the same rule; refused here before an image is uploaded. */
function healthPath(input: string): string {
  if (/^\/[!-~]*$/.test(input)) return input;
  throw new ServiceError("INVALID_REQUEST", `--health-path: "${input}" is no path: it begins with / and has no blanks`);
}
