/**
 * Does one thing to a store and dies by SIGKILL at a named point of it. Arguments: directory, point, and what the
 * point needs (an asset id: what is staged, or a part of what is uploaded).
 */
import { parseId } from "@unkey/base";
import type { AssetManagerParts } from "../src/asset-manager.ts";
import type { AssetDeclaration } from "../src/domain/asset.ts";
import { bytes, digestOf, openFixture } from "./fixture.ts";

const [dir = "", point = "", assetId = ""] = process.argv.slice(2);
const signal = new AbortController().signal;

function die(): never {
  process.kill(process.pid, "SIGKILL");
  for (;;); // the signal arrives before anything else runs
}

/** `target` with one method that dies instead of working. */
function dying<T extends object>(target: T, method: keyof T): T {
  return new Proxy(target, {
    get: (real, key) => {
      const value: unknown = Reflect.get(real, key);
      if (key === method) return die;
      return typeof value === "function" ? value.bind(real) : value;
    },
  });
}

const content = bytes("crashing content");
const declaration: AssetDeclaration = {
  owner: "",
  name: "crash",
  kind: "rootfs",
  digest: digestOf(content),
  sizeBytes: content.length,
  labels: {},
  attachedTo: undefined,
  keep: false,
};

async function* chunks(dieAfter: number) {
  for (let at = 0; at < content.length; at += 4) {
    if (at >= dieAfter) die();
    yield await Promise.resolve(content.subarray(at, at + 4));
  }
}

const real = await openFixture({ dir });
const id = assetId === "" ? undefined : parseId("asset", assetId, "asset");
const open = (parts: Partial<AssetManagerParts>) => openFixture({ dir, gcGraceMs: 60_000, ...parts });

switch (point) {
  case "while receiving":
    await real.manager.uploads.upload(declaration, chunks(8), signal);
    break;
  case "between blob and row": {
    const { manager } = await open({ catalog: { ...real.catalog, uploads: dying(real.catalog.uploads, "finish") } });
    await manager.uploads.upload(declaration, chunks(Infinity), signal);
    break;
  }
  case "between row and blob":
  case "between blob and row, while removing": {
    const removal = dying(real.catalog.removal, "forget");
    const { manager } = await open(
      point === "between row and blob"
        ? { store: dying(real.blobs, "delete") }
        : { catalog: { ...real.catalog, removal } },
    );
    await manager.collector.collect(signal);
    await manager.collector.collect(signal);
    await manager.removal.pass(signal);
    break;
  }
  case "between lease and file": {
    const { manager } = await open({ stager: { stage: die } });
    if (id === undefined) throw new Error("needs an asset");
    const placements = [{ assetId: id, fileName: "rootfs" }];
    await manager.staging.prepare(
      { tenantId: "", leaseKey: "vm_1", placements, targetDir: `${dir}/jails/vm_1`, leaseMs: 5000 },
      signal,
    );
    break;
  }
  case "appending, between bytes and row":
  case "finishing, before the blob":
  case "finishing, between blob and row":
  case "finishing, between row and file": {
    const uploads = dying(real.catalog.uploads, point.startsWith("appending") ? "note" : "finish");
    const store = dying(real.blobs, "adopt");
    const incoming = dying(real.parts.incoming, "remove");
    const { manager } = await open(
      point === "finishing, before the blob"
        ? { store }
        : point === "finishing, between row and file"
          ? { incoming }
          : { catalog: { ...real.catalog, uploads } },
    );
    const { id: uploadId, receivedBytes } = await manager.uploads.begin(
      declaration,
      "key",
      id === undefined ? [] : [id],
    );
    const upload = { owner: "" as const, id: uploadId };
    await manager.uploads.append({ ...upload, offset: receivedBytes }, chunks(Infinity), signal);
    await manager.uploads.finish({ ...upload, expected: declaration.digest, sizeBytes: declaration.sizeBytes }, signal);
    break;
  }
  default:
    throw new Error(`no such point: ${point}`);
}
throw new Error("survived");
