import type { JsonFlag } from "../../command.ts";
import type { CliContext } from "../../context.ts";
export function showStatus(_context: CliContext, _flags: JsonFlag): void {}
