/**
 * What is wrong with bytes that are no message, for the caller and the log. The words of the parsers are not passed on as
 * they are, because they quote what was sent, and that may be a secret.
 */

/** Explains an error of `fromJson` and `fromJsonString` (protobuf-es 2): names the field, never its value. */
export function explainJson(words: string): string {
  const [, kind = "", , name = "", rest = ""] =
    /^cannot decode (message|field|oneof|enum) ([\w.]*\.)?(\w+) from JSON: (.*)$/s.exec(words) ?? [];
  const unknown = /^key "(.*)" is unknown$/s.exec(rest)?.[1];
  if (unknown !== undefined) return `the field ${JSON.stringify(unknown.slice(0, 64))} is unknown in ${name}`;
  if (kind === "enum") return `the value is none of ${name}'s names`;
  if (kind === "oneof") return `only one of ${name}'s fields may be given`;
  if (kind === "field") {
    const expected = /(?:list item #\d+: )?expected [\w ]+(?:\(\w+\))?/.exec(rest)?.[0];
    return `${name}: ${expected ?? "the value does not fit"}${/out of range/.test(rest) ? ", out of range" : ""}`;
  }
  return explainJsonSyntax(rest) ?? "the body does not fit the method's message";
}

/** Explains a SyntaxError of `JSON.parse` (V8); undefined when it is none. */
export function explainJsonSyntax(words: string): string | undefined {
  const position = / at position (\d+)(?: \(|$)/.exec(words)?.[1];
  if (position !== undefined) return `the body is not JSON at byte ${position}`;
  if (words === "Unexpected end of JSON input") return "the body ends before its JSON does";
  return words.endsWith(" is not valid JSON") ? "the body is not JSON" : undefined;
}

/** Explains an error of connect-es' protocol layer. */
export function explainMalformed(words: string): string {
  if (words.startsWith("cannot decode ")) return explainJson(words);
  const binary = /^parse binary: (.*)$/s.exec(words)?.[1];
  return binary === undefined ? words : `the body is not a protobuf message of this method: ${binary.slice(0, 100)}`;
}
