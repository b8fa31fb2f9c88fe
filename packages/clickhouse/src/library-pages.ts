import { readFileSync } from "node:fs";

const madvDontNeed = 4; // <asm-generic/mman-common.h>

/**
 * Unmaps the pages of a loaded library that hold its code and constants; they come back from the page cache when touched.
 * Starting the engine runs thousands of initialisers all over its 540 MB, and the kernel maps 64 KiB around each, which
 * an idle process would keep resident for ever. Does nothing where the runtime has no node:ffi or the system no /proc.
 */
export async function releaseLibraryPages(fileName: string): Promise<void> {
  let maps: string;
  let madvise: (address: bigint, length: bigint, advice: number) => number;
  try {
    maps = readFileSync("/proc/self/maps", "utf8");
    const { dlopen } = await import("node:ffi");
    const signature = { arguments: ["u64", "u64", "i32"], return: "i32" } as const;
    ({ madvise } = dlopen(null, { madvise: signature }).functions);
  } catch {
    return;
  }
  for (const line of maps.split("\n")) {
    // Only code, and the segment at offset 0: the others hold relocations, which exist nowhere but in memory.
    const match = /^([0-9a-f]+)-([0-9a-f]+) (?:r-xp|r--p 00000000) .*\/([^/]+)$/.exec(line);
    if (match?.[3] !== fileName) continue;
    const start = BigInt(`0x${match[1]}`);
    madvise(start, BigInt(`0x${match[2]}`) - start, madvDontNeed);
  }
}
