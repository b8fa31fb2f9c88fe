import { copyFileSync, existsSync, mkdirSync, readFileSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { systemClock } from "@unkey/base";
import type { DaemonSpec, PlatformSpec } from "../src/dev/daemon-spec.ts";
import { type Home, openHome } from "../src/dev/home.ts";
import { runSupervisor, terminationAsked } from "../src/dev/run-supervisor.ts";

/** What a fake daemon shall do wrong from its next start on. */
export interface Behaviour {
  readonly exitCode?: number;
  readonly complaint?: string;
  readonly ignoresStop?: boolean;
}

const names = ["store", "metald", "front"];

/** Three daemons in a chain, each the tiny program in fake-daemon.mjs under its own path. */
export function fakePlatform(home: Home): PlatformSpec & { readonly dir: string } {
  const dir = join(home.root, "fake");
  mkdirSync(dir, { recursive: true });
  const daemons = names.map((name, i): DaemonSpec => {
    const main = join(dir, `${name}.mjs`);
    if (!existsSync(main)) copyFileSync(join(import.meta.dirname, "fake-daemon.mjs"), main);
    return {
      name,
      main,
      dependsOn: ["paint", ...names.slice(Math.max(0, i - 1), i)],
      ports: { health: 0 },
      environment: ({ ports }) => ({
        FAKE_NAME: name,
        FAKE_ADDRESS_FILE: home.addressFile(name),
        FAKE_DIR: dir,
        FAKE_PORT: String(ports["health"]),
      }),
    };
  });
  const paint = { name: "paint", run: () => Promise.resolve("blue") };
  return {
    dir,
    daemons,
    tasks: [paint],
    renewIdentity: () => undefined,
    announce: (addressesOf) => {
      writeFileSync(join(dir, "announced"), addressesOf("front")["health"] ?? "");
    },
  };
}

export function behave(home: Home, name: string, behaviour: Behaviour): void {
  writeFileSync(join(home.root, "fake", `${name}.json`), JSON.stringify(behaviour));
}

/** `<name> <start|stop> <pid>` in the order in which it happened. */
export function events(home: Home): string[] {
  const path = join(home.root, "fake/events");
  return existsSync(path) ? readFileSync(path, "utf8").trim().split("\n") : [];
}

// Run as a program it is the supervisor of the fake platform in the folder that it is given.
if (process.argv[1] === import.meta.filename) {
  const home = openHome(process.argv[2] ?? "");
  await runSupervisor({
    home,
    platform: fakePlatform(home),
    ports: "auto",
    env: process.env,
    clock: systemClock,
    log: (line) => process.stdout.write(`${line}\n`),
    stopAsked: terminationAsked(),
  });
}
