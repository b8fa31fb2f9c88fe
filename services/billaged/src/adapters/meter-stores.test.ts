import { mkdtemp, rm } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { meterStoreContract } from "../meter-store.contract.ts";
import { MemoryMeterStore } from "./memory-meter-store.ts";
import { SqlMeterStore } from "./sql-meter-store.ts";

meterStoreContract("SQL", async () => {
  const folder = await mkdtemp(join(tmpdir(), "unkey-billaged-"));
  let nowMs = 1000;
  return {
    open: () => SqlMeterStore.open(folder, nowMs++),
    remove: () => rm(folder, { recursive: true }),
  };
});

meterStoreContract("memory", async () => {
  const store = new MemoryMeterStore();
  return { open: async () => store, remove: async () => undefined };
});
