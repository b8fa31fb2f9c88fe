import { readFileSync } from "node:fs";
import { get } from "node:http";

/** `host:port` by endpoint, as a daemon wrote them into its address file. */
export type Addresses = Readonly<Record<string, string>>;

/** The addresses of the daemon with `pid`; undefined while it has not written them, or when they are a predecessor's. */
export function readAddresses(path: string, pid: number): Addresses | undefined {
  try {
    const content = JSON.parse(readFileSync(path, "utf8")) as { pid?: unknown; addresses?: Addresses };
    return content.pid === pid ? content.addresses : undefined;
  } catch {
    return undefined;
  }
}

export interface Dependency {
  readonly ok: boolean;
  readonly required: boolean;
  readonly error?: string;
}

/** What `/health` and `/ready` of a daemon say, as far as it is shown. */
export interface HealthReport {
  readonly status: string;
  readonly ready: boolean;
  readonly uptimeSeconds: number;
  readonly dependencies: Readonly<Record<string, Dependency>>;
  readonly layers: Readonly<Record<string, { readonly active: boolean; readonly detail?: string }>>;
}

const answerDeadlineMs = 3000;
const maxAnswerBytes = 256 * 1024;

/** Asks `/health` at `address`; throws when nobody answers, not in time or not in JSON. */
export async function readHealth(address: string): Promise<HealthReport> {
  const answer = Promise.withResolvers<string>();
  const signal = AbortSignal.timeout(answerDeadlineMs);
  const request = get(`http://${address}/health`, { agent: false, signal }, (response) => {
    let text = "";
    response.setEncoding("utf8");
    response.on("data", (piece: string) => {
      text += piece;
      if (text.length > maxAnswerBytes) request.destroy(new Error("the answer is too long"));
    });
    response.on("end", () => answer.resolve(text));
    response.on("error", answer.reject);
  });
  request.on("error", answer.reject);
  return JSON.parse(await answer.promise) as HealthReport;
}

/** Why a daemon is not ready, in a few words; undefined when it is. */
export async function whyNotReady(addresses: Addresses): Promise<string | undefined> {
  const { health } = addresses;
  if (health === undefined) return "it has written no health address";
  try {
    const report = await readHealth(health);
    if (report.ready) return undefined;
    const failed = Object.entries(report.dependencies).filter(
      ([, dependency]) => dependency.required && !dependency.ok,
    );
    if (failed.length === 0) return `it is ${report.status}`;
    return failed.map(([name, { error }]) => `${name}: ${error ?? "does not answer"}`).join("; ");
  } catch (error) {
    return `its health port does not answer: ${error instanceof Error ? error.message : String(error)}`;
  }
}
