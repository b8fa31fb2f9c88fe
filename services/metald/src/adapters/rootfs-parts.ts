import { stat } from "node:fs/promises";
import { readDeviceTable } from "@unkey/erofs";

const blockBytes = 4096;

/**
 * What is wrong with the files that were staged as the parts of an image: digests and sizes have to be those in the image's
 * device table, in its order. Undefined when nothing is. The files' bytes are not read: who staged them vouches for the digests.
 */
export async function partsProblem(
  imagePath: string,
  staged: { readonly partPaths: readonly string[]; readonly partDigests: readonly string[] },
): Promise<string | undefined> {
  const { partPaths, partDigests } = staged;
  const table = await deviceTable(imagePath);
  if (typeof table === "string") {
    // ext4, or what only the guest's kernel can tell: with no part beside it, it mounts nothing that has any.
    return partDigests.length === 0 ? undefined : table;
  }
  if (table.length !== partDigests.length) {
    return `its image names ${table.length} parts, and ${partDigests.length} were staged`;
  }
  for (const [index, { digest, blockCount }] of table.entries()) {
    const which = `part ${index + 1}`;
    const found = partDigests[index];
    if (found !== `sha256:${digest}`) return `${which} is ${found}, and its image names sha256:${digest}`;
    const { size } = await stat(partPaths[index] ?? "");
    if (size !== blockCount * blockBytes) return `${which} has ${size} bytes instead of ${blockCount * blockBytes}`;
  }
  return undefined;
}

/** The image's device table, or why it has none that can be read. */
async function deviceTable(path: string): Promise<Awaited<ReturnType<typeof readDeviceTable>> | string> {
  try {
    return await readDeviceTable(path);
  } catch (error) {
    if (error instanceof Error && !("code" in error)) return error.message;
    throw error;
  }
}
