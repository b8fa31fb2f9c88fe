import { open } from "node:fs/promises";

/** Makes the names in a directory durable. */
export async function syncDirectory(path: string): Promise<void> {
  await using dir = await open(path, "r");
  await dir.sync();
}
