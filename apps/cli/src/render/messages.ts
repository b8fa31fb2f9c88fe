import { type DescEnum, type DescMessage, type MessageShape, toJson } from "@bufbuild/protobuf";
import type { CliContext } from "../context.ts";
import { jsonText } from "./terminal.ts";

// Empty fields are written too, so that a script can rely on them. 64-bit numbers are strings, as protojson has them.
const jsonOptions = { alwaysEmitImplicit: true } as const;

/** An answer as one indented JSON object. */
export function printJson<Desc extends DescMessage>(
  context: CliContext,
  schema: Desc,
  message: MessageShape<Desc>,
): void {
  context.out.write(`${jsonText(toJson(schema, message, jsonOptions), 2)}\n`);
}

/** A message of a stream as one line of JSON. */
export function printJsonLine<Desc extends DescMessage>(
  context: CliContext,
  schema: Desc,
  message: MessageShape<Desc>,
): void {
  context.out.write(`${jsonText(toJson(schema, message, jsonOptions))}\n`);
}

/** `VM_STATE_RUNNING` → `running`; a value of a newer release shows as its number. */
export function enumWord(schema: DescEnum, value: number): string {
  const known = schema.value[value];
  return known === undefined ? String(value) : known.localName.toLowerCase().replaceAll("_", " ");
}
