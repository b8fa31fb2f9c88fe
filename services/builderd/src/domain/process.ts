import { ServiceError } from "@unkey/base";

/** How an image wants to be run, its user resolved to numbers. */
export interface BuildProcess {
  readonly argv: readonly string[];
  readonly env: readonly (readonly [name: string, value: string])[];
  readonly workingDir: string;
  readonly uid: number;
  readonly gid: number;
  readonly groups: readonly number[];
  readonly stopSignal: string;
  readonly exposedPorts: readonly number[];
}

/** The argv that will be run; throws IMAGE_NO_COMMAND when there is none. */
export function commandOf(
  imageArgv: readonly string[],
  argvOverride: readonly string[],
  image: string,
): readonly string[] {
  const argv = argvOverride.length > 0 ? argvOverride : imageArgv;
  if (argv.length > 0 && argv[0] !== "") return argv;
  throw new ServiceError("IMAGE_NO_COMMAND", `${image} has neither ENTRYPOINT nor CMD, and no command was given`);
}

/** Adds HOME where the image sets none, as container engines do. */
export function withHome(env: BuildProcess["env"], home: string): BuildProcess["env"] {
  return env.some(([name]) => name === "HOME") ? env : [...env, ["HOME", home]];
}
