import { spawn } from "node:child_process";
import { readFile } from "node:fs/promises";
import { join } from "node:path";

/** A command ended with a status that is not 0; it has already said why. */
export class CommandFailed extends Error {
  constructor(words: readonly string[], status: number | string) {
    super(`unkey ${words.join(" ")} ended with ${status}`);
    this.name = "CommandFailed";
  }
}

/** Runs `unkey` as a user would, against one data directory. */
export class UnkeyCommand {
  readonly #home: string;

  constructor(home: string) {
    this.#home = home;
  }

  /** Runs a command on this terminal. */
  async show(words: readonly string[], signal?: AbortSignal): Promise<void> {
    signal?.throwIfAborted();
    console.log(`$ unkey ${words.join(" ")}`);
    await this.#run(words, "inherit");
  }

  /** Runs a command with --json and reads what it printed. */
  async json(words: readonly string[], signal?: AbortSignal): Promise<unknown> {
    signal?.throwIfAborted();
    return JSON.parse(await this.#run([...words, "--json"], "pipe"));
  }

  /** Where the API is and which authority it is certified by, as `unkey dev up` wrote it down. */
  async profile(): Promise<{ caFile: string }> {
    return JSON.parse(await readFile(join(this.#home, "cli.json"), "utf8")) as { caFile: string };
  }

  async #run(words: readonly string[], output: "inherit" | "pipe"): Promise<string> {
    const child = spawn(process.execPath, [join(import.meta.dirname, "../main.ts"), ...words], {
      stdio: ["ignore", output, "inherit"],
      // Its own platform and no other that the environment may name.
      env: {
        ...process.env,
        UNKEY_HOME: this.#home,
        UNKEY_API_URL: undefined,
        UNKEY_API_KEY: undefined,
        UNKEY_CA_FILE: undefined,
      },
    });
    let text = "";
    child.stdout?.setEncoding("utf8").on("data", (chunk: string) => {
      text += chunk;
    });
    const status = await new Promise<number | string>((resolve, reject) => {
      child.on("error", reject);
      child.on("close", (code, signal) => resolve(code ?? signal ?? 1));
    });
    if (status !== 0) throw new CommandFailed(words, status);
    return text;
  }
}
