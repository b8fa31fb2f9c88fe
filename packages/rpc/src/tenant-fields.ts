import type { DescField, DescMessage, Message } from "@bufbuild/protobuf";

type Visit = (message: object, found: string[]) => void;

const visitors = new WeakMap<DescMessage, Visit | null>();

/**
 * The values of every `tenant_id` in `message`, nested messages included: a call that acts for one tenant may not name
 * another one anywhere.
 */
export function tenantIdsIn(schema: DescMessage, message: Message): string[] {
  const found: string[] = [];
  visitorOf(schema)?.(message, found);
  return found;
}

/** Compiled once per message type; null when no tenant_id can be reached from it. */
function visitorOf(schema: DescMessage): Visit | null {
  const known = visitors.get(schema);
  if (known !== undefined) return known;
  const visit = reachesTenant(schema, new Set()) ? compile(schema) : null;
  visitors.set(schema, visit);
  return visit;
}

function reachesTenant(schema: DescMessage, seen: Set<DescMessage>): boolean {
  if (seen.has(schema)) return false;
  seen.add(schema);
  return schema.fields.some((field) => {
    const nested = nestedMessage(field);
    return isTenantId(field) || (nested !== undefined && reachesTenant(nested, seen));
  });
}

function compile(schema: DescMessage): Visit {
  const fields = schema.fields.filter((field) => isTenantId(field) || nestedMessage(field) !== undefined);
  return (message, found) => {
    for (const field of fields) {
      const value = valueOf(message, field);
      if (value === undefined) continue;
      if (isTenantId(field)) {
        if (typeof value === "string") found.push(value);
        continue;
      }
      const nested = nestedMessage(field);
      // Looked up when it is needed, so that a message type may contain itself.
      const visit = nested === undefined ? null : visitorOf(nested);
      if (visit === null) continue;
      const items = field.fieldKind === "message" ? [value] : Object.values(value as object);
      for (const item of items) visit(item as object, found);
    }
  };
}

function valueOf(message: object, field: DescField): unknown {
  const fields = message as Record<string, unknown>;
  if (field.oneof === undefined) return fields[field.localName];
  const choice = fields[field.oneof.localName] as { readonly case?: string; readonly value?: unknown };
  return choice.case === field.localName ? choice.value : undefined;
}

function isTenantId(field: DescField): boolean {
  return field.name === "tenant_id" && field.fieldKind === "scalar";
}

function nestedMessage(field: DescField): DescMessage | undefined {
  if (field.fieldKind === "message") return field.message;
  if (field.fieldKind === "list" && field.listKind === "message") return field.message;
  if (field.fieldKind === "map" && field.mapKind === "message") return field.message;
  return undefined;
}
