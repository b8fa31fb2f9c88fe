import { stripVTControlCharacters, styleText } from "node:util";

/** One output stream and what it can show. */
export interface Terminal {
  write(text: string | Uint8Array): void;
  /** True where lines can be redrawn. */
  readonly live: boolean;
  /** Columns of a live terminal; Infinity elsewhere, so that files and pipes get whole lines. */
  readonly columns: number;
  readonly color: boolean;
}

type Style = "bold" | "dim" | "red" | "green" | "yellow" | "cyan";

/** `text` in `style`, or unchanged where the terminal shows no colour. */
export function styled(terminal: Pick<Terminal, "color">, style: Style, text: string): string {
  return terminal.color ? styleText(style, text, { validateStream: false }) : text;
}

type Stream = Pick<NodeJS.WriteStream, "isTTY" | "columns"> & { write(chunk: string | Uint8Array): unknown };

/** Honours NO_COLOR (https://no-color.org) and FORCE_COLOR; TERM=dumb has neither colour nor redrawing. */
export function terminalOf(stream: Stream, env: Readonly<Record<string, string | undefined>>): Terminal {
  const live = stream.isTTY && env["TERM"] !== "dumb";
  const forced = (env["FORCE_COLOR"] ?? "") !== "" && env["FORCE_COLOR"] !== "0";
  return {
    write: (text) => void stream.write(text),
    live,
    get columns() {
      return stream.isTTY ? (stream.columns ?? 80) : Number.POSITIVE_INFINITY;
    },
    color: (env["NO_COLOR"] ?? "") === "" && (forced || live),
  };
}

/** Text from elsewhere on one line, without the sequences by which it could take over the terminal. */
export function plain(text: string): string {
  return stripVTControlCharacters(text).replace(/\p{Cc}+/gu, " ");
}

/** JSON that a terminal may show: of the characters that control one, JSON itself escapes those below U+0020 only. */
export function jsonText(value: unknown, indent?: number): string {
  return escapeControls(JSON.stringify(value, undefined, indent));
}

/** The same JSON as it came, with its line breaks and tabs. */
export function escapeControls(json: string): string {
  return json.replace(/[^\P{Cc}\n\t]/gu, (character) => `\\u${character.charCodeAt(0).toString(16).padStart(4, "0")}`);
}

/** The columns that `text` takes; one for each code point. */
export function width(text: string): number {
  return Array.from(stripVTControlCharacters(text)).length;
}

/** As `fit`, with the end kept, where ids differ. */
export function fitMiddle(text: string, columns: number): string {
  if (width(text) <= columns || columns < 3) return fit(text, columns);
  const points = Array.from(text);
  const end = Math.ceil((columns - 1) / 2);
  return `${points.slice(0, columns - 1 - end).join("")}…${points.slice(-end).join("")}`;
}

/** `text` (without styles) in at most `columns`, the cut shown by an ellipsis. */
export function fit(text: string, columns: number): string {
  if (width(text) <= columns) return text;
  return columns < 1
    ? ""
    : `${Array.from(text)
        .slice(0, columns - 1)
        .join("")}…`;
}
