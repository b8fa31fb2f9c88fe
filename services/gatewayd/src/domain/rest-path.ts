/** A path template such as `/v1/deployments/{deployment_id}`, taken apart. */
export interface PathTemplate {
  readonly text: string;
  readonly segments: readonly ({ readonly literal: string } | { readonly variable: string })[];
}

export function parseTemplate(text: string): PathTemplate {
  const segments = text
    .slice(1)
    .split("/")
    .map((segment) => {
      const variable = /^\{(\w+)\}$/.exec(segment)?.[1];
      return variable === undefined ? { literal: segment } : { variable };
    });
  return { text, segments };
}

/** The values of the template's variables in `path`, percent-decoded; undefined when it does not fit. */
export function matchPath(template: PathTemplate, path: string): Map<string, string> | undefined {
  const parts = path.slice(1).split("/");
  if (!path.startsWith("/") || parts.length !== template.segments.length) return undefined;
  const values = new Map<string, string>();
  for (const [index, segment] of template.segments.entries()) {
    const part = parts[index] ?? "";
    if ("literal" in segment) {
      if (part !== segment.literal) return undefined;
      continue;
    }
    const value = decode(part);
    if (value === undefined || value === "") return undefined;
    values.set(segment.variable, value);
  }
  return values;
}

/** Literal segments before variables, so that `/v1/vms/watch` is not taken for a VM's id. */
export function compareTemplates(a: PathTemplate, b: PathTemplate): number {
  const rank = ({ segments }: PathTemplate) => segments.map((s) => ("literal" in s ? "0" : "1")).join("");
  return rank(a) < rank(b) ? -1 : rank(a) > rank(b) ? 1 : 0;
}

/** The templates that look most like `path`, best first: what somebody who mistyped it may have meant. */
export function nearTemplates(templates: readonly PathTemplate[], path: string, count: number): string[] {
  const parts = path.slice(0, 200).slice(1).split("/").slice(0, 12);
  return templates
    .map((template) => ({ text: template.text, distance: distanceOf(template, parts) }))
    .filter(({ distance }) => distance <= 4)
    .sort((a, b) => a.distance - b.distance)
    .slice(0, count)
    .map(({ text }) => text);
}

function distanceOf(template: PathTemplate, parts: readonly string[]): number {
  const length = Math.max(template.segments.length, parts.length);
  let distance = 0;
  for (let i = 0; i < length; i++) {
    const [segment, part] = [template.segments[i], parts[i]];
    if (segment === undefined || part === undefined) distance += 2;
    else if ("literal" in segment) distance += Math.min(editDistance(segment.literal, part.slice(0, 40)), 4);
  }
  return distance;
}

/** Levenshtein's distance, row by row. */
function editDistance(a: string, b: string): number {
  let row = Array.from({ length: b.length + 1 }, (_, j) => j);
  for (let i = 1; i <= a.length; i++) {
    const next = [i];
    for (let j = 1; j <= b.length; j++) {
      const replaced = (row[j - 1] ?? 0) + (a[i - 1] === b[j - 1] ? 0 : 1);
      next.push(Math.min(replaced, (row[j] ?? 0) + 1, (next[j - 1] ?? 0) + 1));
    }
    row = next;
  }
  return row[b.length] ?? 0;
}

function decode(part: string): string | undefined {
  try {
    return decodeURIComponent(part);
  } catch {
    return undefined;
  }
}
