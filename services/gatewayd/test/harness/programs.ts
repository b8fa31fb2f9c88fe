import { createServer, type RequestListener, type Server } from "node:http";
import type { Vm } from "@unkey/api/metal";
import type { FakeProgram } from "./fake-metald.ts";

export const appPort = 8080;

/** An HTTP server in the VM's place. */
export function httpProgram(
  listener: RequestListener,
  prepare: (server: Server) => void = () => undefined,
): (vm: Vm) => Promise<FakeProgram> {
  return async (vm) => {
    const server = createServer(listener);
    prepare(server);
    await new Promise<void>((resolve, reject) => {
      server.once("error", reject);
      server.listen(appPort, vm.ipAddress, resolve);
    });
    return {
      output: "listening\n",
      [Symbol.asyncDispose]: async () => {
        const closed = new Promise<void>((resolve) => server.close(() => resolve()));
        server.closeAllConnections();
        await closed;
      },
    };
  };
}

/** Answers every request with `text` and the VM's id. */
export function helloProgram(text: string): (vm: Vm) => Promise<FakeProgram> {
  return (vm) =>
    httpProgram((request, response) => {
      request.resume();
      response.setHeader("x-vm", vm.vmId);
      response.end(`${text}\n`);
    })(vm);
}

/** A program that ends at once. */
export function exitingProgram(code: number, output: string): () => Promise<FakeProgram> {
  return async () => ({ exitCode: code, output, [Symbol.asyncDispose]: async () => undefined });
}

/** A program that runs and never listens. */
export function silentProgram(output: string): () => Promise<FakeProgram> {
  return async () => ({ output, [Symbol.asyncDispose]: async () => undefined });
}
