import { ServiceError } from "@unkey/base";
import { runTool } from "../run-tool.ts";

/**
 * Writes a tree archive (see `treeArchive`) below an existing private directory with owners, modes, times, attributes, devices and hard
 * links. Root only. GNU tar does the writing because Node can set no attribute and make no device. It is given nothing
 * hostile: the archive is one we made, in which every name is new, canonical and below real directories. `--keep-old-files`
 * makes it fail rather than replace or follow anything.
 */
export async function unpackTree(
  archive: AsyncIterable<Uint8Array>,
  directory: string,
  signal: AbortSignal,
): Promise<void> {
  if (process.getuid?.() !== 0) {
    throw new ServiceError("ROOTFS_WRITE_FAILED", "writing a root filesystem needs root: it sets owners and devices", {
      nextStep: "Run builderd as root.",
    });
  }
  await runTool({
    command: "tar",
    package: "tar",
    args: [
      "--extract",
      "--file=-",
      `--directory=${directory}`,
      "--absolute-names", // makes symbolic links as they are; no member name of ours is absolute
      "--keep-old-files",
      "--preserve-permissions",
      "--same-owner",
      "--numeric-owner",
      "--xattrs",
      "--xattrs-include=*",
      "--delay-directory-restore",
      "--warning=no-timestamp",
    ],
    input: archive,
    signal,
  });
}
