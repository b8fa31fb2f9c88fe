/**
 * Reads records of `Name: value` lines that are separated by empty lines, as dpkg, apk and Python metadata use them. Only the
 * names asked for are decoded; a continuation line adds nothing to them. The first value of a name counts.
 */
export function* records(bytes: Buffer, names: readonly string[], separator: string): Generator<Map<string, string>> {
  const prefixes = names.map((name) => [name, Buffer.from(name + separator)] as const);
  let record = new Map<string, string>();
  let isEmpty = true;
  for (let start = 0; start < bytes.length; ) {
    const newline = bytes.indexOf(0x0a, start);
    const end = newline === -1 ? bytes.length : newline;
    const line = bytes.subarray(start, end);
    start = end + 1;
    if (isBlank(line)) {
      if (!isEmpty) yield record;
      record = new Map();
      isEmpty = true;
      continue;
    }
    isEmpty = false;
    const found = prefixes.find(
      ([, prefix]) => line.length >= prefix.length && prefix.equals(line.subarray(0, prefix.length)),
    );
    if (found === undefined) continue;
    const [name, prefix] = found;
    // Whatever is longer is refused later: its beginning is enough to tell.
    if (!record.has(name))
      record.set(
        name,
        line
          .subarray(prefix.length, prefix.length + 4096)
          .toString("utf8")
          .trim(),
      );
  }
  if (!isEmpty) yield record;
}

function isBlank(line: Buffer): boolean {
  return line.length === 0 || (line.length === 1 && line[0] === 0x0d);
}
