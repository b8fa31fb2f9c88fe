import { fit, fitMiddle, plain, styled, type Terminal, width } from "./terminal.ts";

export interface Column {
  readonly title: string;
  readonly align?: "left" | "right";
  /** Gives way first when the terminal is narrow. */
  readonly shrinks?: boolean;
  /** Loses its middle when it shrinks: ids begin alike. */
  readonly keepsEnd?: boolean;
}

/** A row of cells without styles; a total is set off from the rows above it. */
export interface Row {
  readonly cells: readonly string[];
  readonly style?: "dim" | "bold";
}

const gap = "  ";
const minShrunk = 8;

/**
 * Lines of a table: a title line and one line for each row, without trailing blanks, each newline-terminated. Cells may
 * come from anywhere: they cannot break their line or control the terminal.
 */
export function renderTable(terminal: Terminal, columns: readonly Column[], given: readonly Row[]): string {
  const rows = given.map((row) => ({ ...row, cells: row.cells.map(plain) }));
  const widths = columns.map((column, i) =>
    Math.max(width(column.title), ...rows.map((row) => width(row.cells[i] ?? ""))),
  );
  let excess = widths.reduce((sum, w) => sum + w, gap.length * (columns.length - 1)) - terminal.columns;
  for (const [i, column] of columns.entries()) {
    const w = widths[i] ?? 0;
    if (!column.shrinks || excess <= 0) continue;
    widths[i] = Math.max(Math.min(w, minShrunk), w - excess);
    excess -= w - (widths[i] ?? 0);
  }
  const line = (cells: readonly string[]) =>
    columns
      .map((column, i) => {
        const cell = (column.keepsEnd ? fitMiddle : fit)(cells[i] ?? "", widths[i] ?? 0);
        const blank = " ".repeat((widths[i] ?? 0) - width(cell));
        return column.align === "right" ? blank + cell : cell + blank;
      })
      .join(gap)
      .trimEnd();
  const lines = [
    styled(terminal, "dim", line(columns.map((column) => column.title))),
    ...rows.map((row) => (row.style ? styled(terminal, row.style, line(row.cells)) : line(row.cells))),
  ];
  return lines.map((text) => `${text}\n`).join("");
}
