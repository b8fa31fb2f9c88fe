import { readdirSync, writeFileSync } from "node:fs";
import { Socket } from "node:net";

/*
 * The real worker, that stands still for ever where its first argument says: as it tells of its first progress, or as it is done,
 * with unpacking or with assembling. A file says that it does.
 */

function standStillAt(bytes: unknown): void {
  if (!(bytes instanceof Uint8Array)) return;
  const { kind } = JSON.parse(Buffer.from(bytes).subarray(4).toString()) as { kind: string };
  const job = readdirSync("in").length === 0 ? "unpack" : "assemble";
  if (`${job}:${kind}` !== process.argv[2]) return;
  writeFileSync("out/held", "");
  Atomics.wait(new Int32Array(new SharedArrayBuffer(4)), 0, 0);
}

// oxlint-disable-next-line typescript/unbound-method -- called with its socket below
Socket.prototype.write = new Proxy(Socket.prototype.write, {
  apply(write, socket, args) {
    standStillAt(args[0]);
    return Reflect.apply(write, socket, args);
  },
});

await import("../../src/worker/main.ts");
