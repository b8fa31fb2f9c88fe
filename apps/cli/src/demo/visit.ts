import { readFile } from "node:fs/promises";
import { Agent, get } from "node:https";

export interface Visit {
  readonly url: string;
  /** PEM of the authority that certifies the ingress. */
  readonly caFile: string;
  readonly signal: AbortSignal;
}

const requests = 200;
const connections = 4;

/** Opens the address once. */
export async function openUntilOk(visit: Visit): Promise<string> {
  await using client = await connect(visit);
  return (await client.get("/")).toString("utf8");
}

/** Asks for a page that keeps the guest's CPU and network busy; yields a sentence about it. */
export async function generateLoad(visit: Visit): Promise<string> {
  await using client = await connect(visit);
  const startMs = performance.now();
  let bytes = 0;
  let left = requests;
  await Promise.all(
    Array.from({ length: connections }, async () => {
      while (left-- > 0) {
        const { length } = await client.get("/load.bin");
        bytes += length; // not `bytes += await …`, which reads `bytes` before the others have added to it
      }
    }),
  );
  const seconds = (performance.now() - startMs) / 1000;
  return `${requests} requests over ${connections} connections in ${seconds.toFixed(1)} s, ${(bytes / 2 ** 20).toFixed(1)} MiB received`;
}

async function connect({
  url,
  caFile,
  signal,
}: Visit): Promise<AsyncDisposable & { get(path: string): Promise<Buffer> }> {
  const agent = new Agent({ keepAlive: true, maxSockets: connections, ca: await readFile(caFile) });
  return {
    get: (path) =>
      new Promise((resolve, reject) => {
        // `*.localhost` is loopback by definition (RFC 6761), whether or not this machine's resolver knows.
        const lookup = (_name: string, options: { all?: boolean }, done: (error: null, ...found: unknown[]) => void) =>
          options.all ? done(null, [{ address: "127.0.0.1", family: 4 }]) : done(null, "127.0.0.1", 4);
        const request = get(new URL(path, url), { agent, lookup: lookup as never, signal }, (response) => {
          const chunks: Buffer[] = [];
          response.on("data", (chunk: Buffer) => chunks.push(chunk));
          response.on("error", reject);
          response.on("end", () => {
            if (response.statusCode === 200) resolve(Buffer.concat(chunks));
            else reject(new Error(`${path} answered ${response.statusCode}`));
          });
        });
        request.on("error", reject);
      }),
    [Symbol.asyncDispose]: async () => agent.destroy(),
  };
}
