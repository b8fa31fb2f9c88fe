import type { Home } from "./home.ts";

/** Ports to listen on by endpoint; 0 lets the system choose. */
export type Ports = Readonly<Record<string, number>>;

/** One daemon as the supervisor sees it. */
export interface DaemonSpec {
  readonly name: string;
  /** Absolute path of the file that Node runs. */
  readonly main: string;
  /** Daemons and tasks that must be ready first. */
  readonly dependsOn: readonly string[];
  /** The documented port of each endpoint. */
  readonly ports: Ports;
  /** The settings of this daemon: nothing else tells it anything. */
  environment(context: { readonly home: Home; readonly ports: Ports }): Readonly<Record<string, string>>;
}

/** Work that daemons wait for; `report` says what it is doing. */
export interface TaskSpec {
  readonly name: string;
  run(report: (detail: string) => void, signal: AbortSignal): Promise<string>;
}

/** A whole platform: what runs, what must be done before, and what must be done again while it runs. */
export interface PlatformSpec {
  readonly daemons: readonly DaemonSpec[];
  readonly tasks: readonly TaskSpec[];
  /** Issues what `daemon` needs to prove itself, if that is missing or half used up. Runs before each start and often. */
  renewIdentity(daemon: string): void;
  /** All are ready: tells the user's tools where. Runs again after a restart that may have moved an address. */
  announce(addressesOf: (daemon: string) => Readonly<Record<string, string>>): void;
}
