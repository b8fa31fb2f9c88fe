/** A scope is `<resource>:<action>`; `<resource>:*` covers every action of a resource and `*` everything. */

/** True when one of `granted` covers `wanted`, which may itself be a wildcard. */
export function scopeAllows(granted: readonly string[], wanted: string): boolean {
  const resource = wanted.slice(0, wanted.indexOf(":"));
  return granted.some((scope) => scope === "*" || scope === wanted || (resource !== "" && scope === `${resource}:*`));
}

/** True when `scope` is a scope of `known`, or a wildcard over some of them. */
export function isKnownScope(scope: string, known: ReadonlySet<string>): boolean {
  if (scope === "*" || known.has(scope)) return true;
  return scope.endsWith(":*") && [...known].some((each) => each.startsWith(scope.slice(0, -1)));
}
