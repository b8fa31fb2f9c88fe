import * as fc from "fast-check";
import { paxEntry, type TarFixture, tarOf } from "./tar-fixture.ts";

/** An entry, or the path of a file with a hole before its content and one behind it. */
export type TestEntry = TarFixture | { readonly sparse: string };

export function archiveOf(entries: readonly TestEntry[]): Buffer {
  const records = [
    ["GNU.sparse.size", "9000"],
    ["GNU.sparse.numblocks", "1"],
    ["GNU.sparse.map", "4096,3"],
  ] as const;
  return tarOf(
    entries.map((entry) => ("sparse" in entry ? paxEntry(records, { name: entry.sparse, content: "abc" }) : entry)),
  );
}

// Few names, so that layers meet: replace, remove and link each other's entries. Most directories keep to names of their
// own, or nearly every stack would be refused for a name below a file.
const leaf = fc.oneof(
  { arbitrary: fc.constantFrom("c", "e", "f"), weight: 12 },
  { arbitrary: fc.constantFrom("a", "d"), weight: 1 },
);
const path = fc
  .tuple(fc.array(fc.constantFrom("a", "b", "d"), { maxLength: 2 }), leaf)
  .map(([parents, last]) => [...parents, last].join("/"));
const directoryPath = fc
  .array(fc.constantFrom("a", "b", "d"), { minLength: 1, maxLength: 2 })
  .map((parts) => parts.join("/"));
const owner = fc.constantFrom(0, 7, 1000, 70_000);
const time = fc.constantFrom(1_600_000_000_000_000_000n, 1_234_567_890_123_456_789n);
const xattrs = fc
  .subarray([
    ["user.a", Buffer.from([0, 255, 61, 10])],
    ["user.b", Buffer.from("b")],
    ["security.capability", Buffer.from("0100000200000000000000000000000000000000", "hex")],
  ] as const)
  .map((pairs) => new Map<string, Buffer>(pairs));
const content = fc.oneof(
  { arbitrary: fc.string({ maxLength: 9 }).map((text) => Buffer.from(text)), weight: 3 },
  {
    arbitrary: fc
      .tuple(fc.constantFrom(2048, 2049, 4096, 9000, 13_000), fc.string({ maxLength: 3 }))
      .map(([length, text]) => Buffer.alloc(length, `${text}~`)),
    weight: 2,
  },
);
const any = {
  file: fc.record({
    name: path,
    content,
    mode: fc.constantFrom(0o600, 0o644, 0o4755),
    uid: owner,
    mtimeNs: time,
    xattrs,
  }),
  directory: fc.record({
    type: fc.constant("directory" as const),
    name: directoryPath,
    mode: fc.constantFrom(0o700, 0o1777),
    gid: owner,
    mtimeNs: time,
  }),
  symlink: fc.record({
    type: fc.constant("symlink" as const),
    name: path,
    linkName: fc.constantFrom("a", "../b", "/c", "/d/a", "nowhere"),
  }),
  hardlink: fc.record({ type: fc.constant("hardlink" as const), name: path, linkName: path }),
  whiteout: fc.oneof(path, directoryPath).map((at) => ({ name: at.replace(/[^/]+$/, (last) => `.wh.${last}`) })),
  opaque: directoryPath.map((at) => ({ name: `${at}/.wh..wh..opq` })),
  sparse: fc.record({ sparse: path }),
  device: fc.record({
    type: fc.constant("char" as const),
    name: path,
    deviceMajor: fc.constant(1),
    deviceMinor: fc.constant(3),
  }),
};
const anyEntry: fc.Arbitrary<TestEntry> = fc.oneof(
  { arbitrary: any.file, weight: 6 },
  { arbitrary: any.directory, weight: 4 },
  { arbitrary: any.symlink, weight: 2 },
  { arbitrary: any.hardlink, weight: 2 },
  { arbitrary: any.whiteout, weight: 2 },
  { arbitrary: any.opaque, weight: 1 },
  { arbitrary: any.device, weight: 1 },
  { arbitrary: any.sparse, weight: 1 },
);
/** There from the start, so that links and whiteouts often find something. */
const base: readonly TarFixture[] = [
  { name: "a/a", content: "aa" },
  { name: "b/b", content: Buffer.alloc(5000, "b") },
  { name: "c", content: "c" },
  { name: "d", type: "directory" },
  { name: "d/c", type: "hardlink", linkName: "c" },
];
/** Stacks of layers that replace, remove and link each other's entries. */
export const anyLayers = fc
  .array(fc.array(anyEntry, { minLength: 1, maxLength: 8 }), { minLength: 1, maxLength: 4 })
  .map((layers) => [base, ...layers]);
