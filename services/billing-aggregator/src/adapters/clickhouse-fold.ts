const summed = [
  "cpu_time_us",
  "memory_byte_ms",
  "memory_resident_byte_ms",
  "disk_byte_ms",
  "disk_read_bytes",
  "disk_write_bytes",
  "net_in_bytes",
  "net_out_bytes",
  "samples_expected",
  "samples_seen",
  "windows",
] as const;

const key = ["tenant_id", "app_id", "vm_id", "incarnation", "host_id", "price_book_id", "price_book_hash"] as const;

/** Columns of a folded unit, in the order in which `foldSql` yields them. */
export const foldedColumns: readonly string[] = [
  ...key,
  "start",
  "covered_from_ms",
  "covered_to_ms",
  ...summed,
  "broken_links",
  "opening",
  "previous_hash",
  "closing",
  "hash",
  "revision",
  "final",
];

/**
 * A SELECT that folds the units of `table` by series and price book: sums, the two ends, and how many neighbours do not
 * continue each other. It is `continues` of domain/usage-unit.ts in the engine's words. `bucket` is what `start` becomes
 * and what units are grouped by beside their series; without it all that `where` lets through is one unit.
 */
export function foldSql(options: { readonly table: string; readonly where: string; readonly bucket?: string }): string {
  const { table, where, bucket } = options;
  const ends = "w.covered_from_ms, w.covered_to_ms, w.opening, w.closing, w.previous_hash, w.hash, w.revision";
  // Tuples sort by their first elements: covered_from_ms, covered_to_ms.
  const ordered = `arraySort(groupArray((${ends})))`;
  const at = "(w.covered_from_ms, w.covered_to_ms)";
  return `SELECT ${key.map((name) => `w.${name} AS ${name}`).join(", ")},
  ${bucket ?? "min(w.start)"} AS start,
  min(w.covered_from_ms) AS covered_from_ms,
  max(w.covered_to_ms) AS covered_to_ms,
  ${summed.map((name) => `sum(w.${name}) AS ${name}`).join(", ")},
  sum(w.broken_links) + arrayCount(
    (a, b) -> NOT (b.1 = a.2 AND b.3 = a.4 AND (b.5 = a.6 OR a.7 > 0)),
    arrayPopBack(${ordered}), arrayPopFront(${ordered})) AS broken_links,
  argMin(w.opening, ${at}) AS opening,
  argMin(w.previous_hash, ${at}) AS previous_hash,
  argMax(w.closing, ${at}) AS closing,
  argMax(w.hash, ${at}) AS hash,
  argMax(w.revision, ${at}) AS revision,
  argMax(w.final, ${at}) AS final
FROM ${table} AS w FINAL
WHERE ${where}
GROUP BY ${key.map((name) => `w.${name}`).join(", ")}${bucket === undefined ? "" : `, ${bucket}`}`;
}
