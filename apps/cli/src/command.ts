import { type BaseArgs, type BaseFlags, buildCommand, type Command, type TypedCommandParameters } from "@stricli/core";
import type { ConnectionFlags } from "./connection/target.ts";
import type { CliContext } from "./context.ts";
import { failureOf } from "./failure.ts";

/** What a command takes and does. `load` brings its work when it is called for, so that `--help` loads none. */
interface CommandDefinition<Flags extends BaseFlags, Args extends BaseArgs> {
  readonly load: () => Promise<(context: CliContext, flags: Flags, ...args: Args) => void | Promise<void>>;
  readonly parameters: NoInfer<TypedCommandParameters<Flags, Args, CliContext>>;
  readonly docs: { readonly brief: string; readonly fullDescription?: string };
}

/** A command of stricli's; whatever its work throws leaves as a CliFailure. */
export function command<Flags extends BaseFlags, Args extends BaseArgs>(
  definition: CommandDefinition<Flags, Args>,
): Command<CliContext> {
  const { load, parameters, docs } = definition;
  return buildCommand<Flags, Args, CliContext>({
    loader: async () => {
      const work = await load();
      return async function (flags, ...args) {
        try {
          return await work(this, flags, ...args);
        } catch (error) {
          return failureOf(error);
        }
      };
    },
    parameters,
    docs,
  });
}

/** Flags are types, not interfaces: stricli wants them to be records. */
export type JsonFlag = { readonly json: boolean };

export type ApiFlags = ConnectionFlags & JsonFlag;

export const text = (input: string): string => input;

export const jsonFlag = {
  json: { kind: "boolean", brief: "Print JSON instead of text; streams as one object a line", default: false },
} as const;

/** The flags of every command that talks to the API. */
export const apiFlags = {
  apiUrl: {
    kind: "parsed",
    parse: text,
    brief: "Address of the API (UNKEY_API_URL, or the profile)",
    optional: true,
    placeholder: "url",
  },
  apiKeyFile: {
    kind: "parsed",
    parse: text,
    brief: "File that holds the API key (UNKEY_API_KEY, or the profile)",
    optional: true,
    placeholder: "path",
  },
  caFile: {
    kind: "parsed",
    parse: text,
    brief: "Authority's certificate to trust (UNKEY_CA_FILE, or the profile)",
    optional: true,
    placeholder: "path",
  },
  ...jsonFlag,
} as const;

/** One required word, such as the name of an app. */
export function word(placeholder: string, brief: string) {
  return { kind: "tuple", parameters: [{ parse: text, placeholder, brief }] } as const;
}
