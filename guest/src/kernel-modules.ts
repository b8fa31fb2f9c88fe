/** Content of an uncompressed kernel module by name, undefined when the kernel has the driver built in. */
export type ReadModule = (name: string) => Uint8Array | undefined;

/**
 * `wanted` and all that they depend on, in an order in which each can be loaded after those before it; dependencies are
 * those that depmod(8) reads from the `depends=` line of a module's .modinfo section.
 */
export function loadOrder(wanted: readonly string[], read: ReadModule): Map<string, Uint8Array> {
  const ordered = new Map<string, Uint8Array>();
  const visiting = new Set<string>();
  const visit = (name: string): void => {
    if (visiting.has(name)) return;
    visiting.add(name);
    const content = read(name);
    if (content === undefined) return;
    for (const dependency of dependencies(content)) visit(dependency);
    ordered.set(name, content);
  };
  for (const name of wanted) visit(name);
  return ordered;
}

function dependencies(module: Uint8Array): string[] {
  const match = /\0depends=([\w,-]*)\0/.exec(Buffer.from(module).toString("latin1"));
  // File names write "_" or "-", .modinfo writes either: "_" is the name.
  return (match?.[1] ?? "").split(",").flatMap((name) => (name === "" ? [] : [name.replaceAll("-", "_")]));
}
