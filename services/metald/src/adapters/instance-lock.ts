import { once } from "node:events";
import { createServer } from "node:net";

/**
 * Keeps a second metald off the same data directory: an abstract Unix socket exists once on a host and goes with its
 * process, however that ends (unix(7)).
 */
export async function lockInstance(instanceId: string): Promise<AsyncDisposable> {
  const server = createServer((socket) => socket.destroy());
  server.listen(`\0unkey-metald-${instanceId}`);
  try {
    await once(server, "listening");
  } catch (cause) {
    throw new Error("another metald runs on this data directory", { cause });
  }
  server.unref();
  return server;
}
