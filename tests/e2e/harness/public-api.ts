import { type ExecFileException, execFile } from "node:child_process";
import type { IncomingHttpHeaders } from "node:http";
import { request } from "node:https";
import { join } from "node:path";
import type { Platform } from "@unkey/testkit";

/** What an app's owner has of a platform that runs in this process: the API, the command line, the apps' addresses. */

type Json = Readonly<Record<string, unknown>>;

export interface Answer {
  readonly status: number;
  readonly headers: IncomingHttpHeaders;
  readonly body: string;
}

/** RFC 9457, with the members of the error catalogue. */
export interface ProblemJson {
  readonly type: string;
  readonly title: string;
  readonly status: number;
  readonly detail: string;
  readonly reason: string;
  readonly nextStep: string;
  readonly requestId: string;
}

export interface DeploymentJson {
  readonly deploymentId: string;
  readonly state: string;
  readonly steps: readonly { readonly kind: string; readonly state: string }[];
  readonly vmIds: readonly string[];
  readonly failure?: {
    readonly step: string;
    readonly reason: string;
    readonly message: string;
    readonly nextStep: string;
    readonly exit?: { readonly code?: number };
    readonly lastLines: readonly string[];
  };
}

export interface CallOptions {
  /** Sent as JSON. */
  readonly body?: Json;
  /** Sent as it is. */
  readonly raw?: Uint8Array | string;
  readonly headers?: Readonly<Record<string, string>>;
}

/** One REST request with the platform's first key. */
export function callApi(platform: Platform, method: string, path: string, options: CallOptions = {}): Promise<Answer> {
  const payload = options.raw ?? (options.body === undefined ? undefined : JSON.stringify(options.body));
  const headers = {
    authorization: `Bearer ${platform.apiKey}`,
    ...(payload === undefined ? {} : { "content-type": "application/json" }),
    ...options.headers,
  };
  return exchange(new URL(path, platform.apiUrl), { method, ca: platform.caPem, headers }, payload);
}

export async function getJson<T>(platform: Platform, path: string): Promise<T> {
  const { status, body } = await callApi(platform, "GET", path);
  if (status !== 200) throw new Error(`GET ${path}: ${status} ${body}`);
  return JSON.parse(body) as T;
}

/** Deploys and follows the deployment to its end. */
export async function deployAndWait(platform: Platform, body: Json): Promise<DeploymentJson> {
  const accepted = await callApi(platform, "POST", "/v1/deployments", { body });
  if (accepted.status !== 202) throw new Error(`not accepted: ${accepted.status} ${accepted.body}`);
  const { deploymentId } = JSON.parse(accepted.body) as DeploymentJson;
  const watched = await callApi(platform, "GET", `/v1/deployments/${deploymentId}/watch`);
  return JSON.parse(watched.body.trim().split("\n").at(-1) ?? "") as DeploymentJson;
}

/** GET of an app by its public address, certified by the platform's authority. */
export function visit(platform: Platform, url: string, path = "/"): Promise<Answer> {
  const { hostname, port } = new URL(url);
  return exchange(new URL(path, `https://${platform.ingressAddress}`), {
    ca: platform.caPem,
    servername: hostname,
    headers: { host: `${hostname}:${port}` },
  });
}

function exchange(
  url: URL,
  options: NonNullable<Parameters<typeof request>[1]> & object,
  payload?: Uint8Array | string,
): Promise<Answer> {
  return new Promise((resolve, reject) => {
    const call = request(url, { ...options, agent: false }, (response) => {
      const chunks: Buffer[] = [];
      response.on("data", (chunk: Buffer) => chunks.push(chunk));
      response.once("error", reject);
      response.once("end", () => {
        const { statusCode = 0, headers } = response;
        resolve({ status: statusCode, headers, body: Buffer.concat(chunks).toString() });
      });
    });
    call.once("error", reject);
    call.end(payload);
  });
}

export interface CliRun {
  readonly exitCode: number;
  readonly out: string;
  readonly err: string;
}

/** Runs the command line against the platform, as a process of its own. */
export function runCli(
  platform: Platform,
  words: readonly string[],
  env: Readonly<Record<string, string>> = {},
): Promise<CliRun> {
  const main = join(import.meta.dirname, "../../../apps/cli/src/main.ts");
  const settings = {
    PATH: process.env["PATH"] ?? "",
    UNKEY_HOME: join(platform.home, "cli"),
    UNKEY_API_URL: platform.apiUrl,
    UNKEY_API_KEY: platform.apiKey,
    UNKEY_CA_FILE: join(platform.home, "data/gatewayd/ingress-ca.crt"),
  };
  return new Promise((resolve) => {
    const options = { env: { ...settings, ...env }, timeout: 120_000 };
    execFile(process.execPath, [main, ...words], options, (error: ExecFileException | null, out, err) => {
      resolve({ exitCode: error === null ? 0 : typeof error.code === "number" ? error.code : -1, out, err });
    });
  });
}
