/** One way to authenticate that a 401 answer offers (RFC 9110, section 11.6.1). */
export interface Challenge {
  /** Lower case: `basic`, `bearer`. */
  readonly scheme: string;
  readonly parameters: Readonly<Record<string, string>>;
}

const maxHeaderLength = 8192;

/**
 * Reads WWW-Authenticate headers, several challenges in one included. What cannot be read is left out: the caller sees
 * that nothing usable is offered.
 */
export function parseChallenges(header: string | readonly string[] | undefined): Challenge[] {
  const text = (typeof header === "string" ? header : (header ?? []).join(", ")).slice(0, maxHeaderLength);
  const challenges: { scheme: string; parameters: Record<string, string> }[] = [];
  // Either a parameter `name=value` of the challenge at hand, or a word that starts the next challenge.
  const token =
    /([A-Za-z0-9!#$%&'*+.^_`|~-]+)(?:\s*=\s*(?:"((?:[^"\\]|\\.)*)"|([A-Za-z0-9!#$%&'*+.^_`|~:/?-]+)))?\s*,?\s*/y;
  token.lastIndex = text.length - text.trimStart().length;
  for (let match = token.exec(text); match !== null; match = token.exec(text)) {
    const [, name = "", quoted, plain] = match;
    if (quoted === undefined && plain === undefined) challenges.push({ scheme: name.toLowerCase(), parameters: {} });
    else {
      const value = quoted === undefined ? (plain ?? "") : quoted.replaceAll(/\\(.)/g, "$1");
      const current = challenges.at(-1);
      if (current !== undefined) current.parameters[name.toLowerCase()] = value;
    }
  }
  return challenges;
}
