import { ServiceError } from "@unkey/base";
import { type ByteString, printable } from "../byte-string.ts";
import type { FileNode } from "../layer/tree.ts";
import { pathOf } from "./visit-tree.ts";

/** What an image's tree may hold. */
export interface TreePolicy {
  /** What becomes of setuid and setgid bits and of file capabilities: kept, taken off, or a reason to refuse the image. */
  readonly setuid: "keep" | "strip" | "refuse";
}

const setuidBit = 0o4000;
const setgidBit = 0o2000;

/** Applies a policy to the files of one tree, each given once by one of its names. */
export class PolicyCheck {
  readonly #policy: TreePolicy;
  #first: string | undefined;
  #count = 0;

  constructor(policy: TreePolicy) {
    this.#policy = policy;
  }

  add(directory: ByteString, name: ByteString, file: FileNode): void {
    if (this.#policy.setuid === "keep") return;
    const { mode, xattrs } = file.metadata;
    const privileged = (mode & (setuidBit | setgidBit)) !== 0 || xattrs.has("security.capability");
    if (!privileged) return;
    if (this.#policy.setuid === "refuse") {
      const what =
        (mode & setuidBit) !== 0 ? "the setuid bit" : (mode & setgidBit) !== 0 ? "the setgid bit" : "file capabilities";
      this.#first ??= `${printable(`/${pathOf(directory, name)}`)} has ${what}`;
      this.#count++;
      return;
    }
    const kept = new Map(xattrs);
    kept.delete("security.capability");
    file.metadata = { ...file.metadata, mode: mode & ~(setuidBit | setgidBit), xattrs: kept };
  }

  /** Throws IMAGE_PRIVILEGED_FILE naming the first file that the policy refuses. */
  finish(): void {
    if (this.#first === undefined) return;
    const others = this.#count > 1 ? `, and ${this.#count - 1} more like it` : "";
    throw new ServiceError("IMAGE_PRIVILEGED_FILE", `${this.#first}, which the build policy refuses${others}`);
  }
}
