import type { DescMessage, Message } from "@bufbuild/protobuf";
import type { Validator } from "@bufbuild/protovalidate";
import { ServiceError } from "@unkey/base";

let validator: Promise<Validator> | undefined;

/** Loads the validation rules' engine; the first call of a process would otherwise pay for it. */
export function warmUpValidation(): Promise<Validator> {
  return (validator ??= import("@bufbuild/protovalidate").then(({ createValidator }) => createValidator()));
}

/** Checks `message` against the rules in its .proto file; throws INVALID_REQUEST naming the fields. */
export async function validate(schema: DescMessage, message: Message): Promise<void> {
  const result = (await warmUpValidation()).validate(schema, message);
  if (result.kind === "valid") return;
  if (result.kind === "error") throw result.error;
  const shown = result.violations.slice(0, 5).map((violation) => violation.toString());
  const more = result.violations.length - shown.length;
  throw new ServiceError("INVALID_REQUEST", `${shown.join("; ")}${more > 0 ? `; and ${more} more` : ""}`);
}
