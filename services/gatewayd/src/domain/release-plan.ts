import { appNameFrom, ServiceError } from "@unkey/base";

export interface EnvVar {
  readonly name: string;
  readonly value: string;
}

/** How an image wants to be run. */
export interface ImageProcess {
  readonly argv: readonly string[];
  readonly env: readonly EnvVar[];
  readonly exposedPorts: readonly number[];
}

/** What a deployment asks for on top of it. */
export interface ProcessOverrides {
  readonly argv: readonly string[];
  readonly env: readonly EnvVar[];
  /** 0 when the caller left it open. */
  readonly port: number;
}

export interface PlannedProcess {
  readonly argv: readonly string[];
  readonly env: readonly EnvVar[];
  readonly port: number;
}

const defaultPort = 8080;

/**
 * What runs in the VM: the caller's arguments replace the image's, its variables win by name, its port counts before the
 * lowest that the image exposes and that before 8080. PORT tells the program which one it became, unless somebody set it.
 */
export function planProcess(image: ImageProcess, overrides: ProcessOverrides): PlannedProcess {
  const argv = overrides.argv.length > 0 ? overrides.argv : image.argv;
  if (argv.length === 0) {
    throw new ServiceError("IMAGE_NO_COMMAND", "the image declares no command and the deployment gives none");
  }
  const lowestExposed = image.exposedPorts.length > 0 ? Math.min(...image.exposedPorts) : defaultPort;
  const port = overrides.port > 0 ? overrides.port : lowestExposed;
  const env = new Map([["PORT", String(port)]]);
  for (const { name, value } of [...image.env, ...overrides.env]) env.set(name, value);
  return { argv, env: [...env].map(([name, value]) => ({ name, value })), port };
}

/** The app's name for an image reference: after its last path component without tag and digest; undefined when nothing usable is left. */
export function appNameOf(reference: string): string | undefined {
  const path = reference.replace(/@.*$/, "").replace(/:[^/:]*$/, "");
  return appNameFrom(path.slice(path.lastIndexOf("/") + 1));
}
