import { plain, styled, type Terminal } from "./terminal.ts";

/** Named values, one a line; those that are empty are left out. */
export function renderFields(
  terminal: Terminal,
  fields: ReadonlyArray<readonly [name: string, value: string]>,
): string {
  const shown = fields.filter(([, value]) => value !== "" && value !== "-");
  const longest = Math.max(0, ...shown.map(([name]) => name.length));
  return shown.map(([name, value]) => `${styled(terminal, "dim", name.padEnd(longest))}  ${plain(value)}\n`).join("");
}
