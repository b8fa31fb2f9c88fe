import fs, { readdirSync, writeFileSync } from "node:fs";
import { syncBuiltinESMExports } from "node:module";
import { Socket } from "node:net";

/*
 * The real worker, that stands still for ever where its first argument says: as it has read the first bytes of a layer
 * (`unpack:read`), as it tells of its first progress with assembling (`assemble:progress`), or as it is done with either
 * (`unpack:done`, `assemble:done`). A file says that it does.
 */

function standStillWith(bytes: unknown): void {
  if (!(bytes instanceof Uint8Array)) return;
  standStillAt((JSON.parse(Buffer.from(bytes).subarray(4).toString()) as { kind: string }).kind);
}

function standStillAt(point: string): void {
  const job = readdirSync("in").length === 0 ? "unpack" : "assemble";
  if (`${job}:${point}` !== process.argv[2]) return;
  writeFileSync("out/held", "");
  Atomics.wait(new Int32Array(new SharedArrayBuffer(4)), 0, 0);
}

// oxlint-disable-next-line typescript/unbound-method -- called with its socket below
Socket.prototype.write = new Proxy(Socket.prototype.write, {
  apply(write, socket, args) {
    standStillWith(args[0]);
    return Reflect.apply(write, socket, args);
  },
});

fs.readSync = new Proxy(fs.readSync, {
  apply(read, _, args) {
    const count: unknown = Reflect.apply(read, fs, args);
    standStillAt("read");
    return count;
  },
});
syncBuiltinESMExports();

await import("../../src/worker/main.ts");
