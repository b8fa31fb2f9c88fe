import { basename, dirname } from "node:path";
import type { Env } from "../../context.ts";
import type { BuildArg, BuildSecret } from "./build-flags.ts";

export interface EngineBuild {
  /** Absolute, like every path here. */
  readonly contextDir: string;
  readonly dockerfile: string;
  /** `<dockerfile>.dockerignore`, where there is one: it takes the place of the context's own. */
  readonly ignoreFile: string | undefined;
  readonly target: string | undefined;
  /** `linux/amd64`. */
  readonly platform: string;
  readonly buildArgs: readonly BuildArg[];
  readonly secrets: readonly BuildSecret[];
  /** Where the image's archive shall be. */
  readonly archive: string;
  /** Where an engine that keeps images writes the id of the new one. */
  readonly imageIdFile: string;
  /** Told apart from those of other builds of this engine. */
  readonly uniqueTag: string;
  /** The same at each build of this directory. */
  readonly steadyTag: string;
  readonly env: Env;
}

export interface EngineCommand {
  readonly args: readonly string[];
  readonly env?: Env;
}

/** A program that builds Dockerfiles. */
export interface Engine {
  readonly name: "buildctl" | "buildah" | "docker" | "podman";
  /** Each succeeds where it can build. */
  readonly probes: readonly (readonly string[])[];
  /** What the probes ask for, said to whom they fail. */
  readonly needs: string;
  /** False where RUN --mount=type=secret is not known. */
  readonly takesSecrets: boolean;
  build(request: EngineBuild): EngineCommand;
  /** Writes the archive, where `build` does not. */
  save?(request: EngineBuild, imageId: string): EngineCommand;
  /** Removes what is left in the engine; what it keeps for the next build stays. */
  clean?(request: EngineBuild): EngineCommand;
}

/** What engines and what they call read from their environment: a build argument of such a name must not get there. */
const engineVariables =
  /^(?:PATH|HOME|USER|SHELL|TMPDIR|LANG|LC_.*|LD_.*|XDG_.*|SSL_.*|SSH_.*|GO.*|(?:HTTPS?|NO|ALL|FTP)_PROXY|DOCKER_.*|BUILDKIT_.*|BUILDX_.*|BUILDCTL_.*|BUILDAH_.*|PODMAN_.*|CONTAINERS?_.*|STORAGE_.*|REGISTRY_.*|OTEL_.*|NO_COLOR|DBUS_.*|_.*)$/i;

/**
 * Build arguments by environment (`--build-arg NAME`), which only this user can read, unless the engine would take the variable for its
 * own: then on the command line, which everybody on the host can read.
 */
function hiddenArgs({ buildArgs, env }: EngineBuild): { readonly args: string[]; readonly env: Env } {
  const hidden = buildArgs.filter(({ name, value }) => !engineVariables.test(name) && (env[name] ?? value) === value);
  const rest = buildArgs.filter((each) => !hidden.includes(each));
  return {
    args: [
      ...hidden.flatMap(({ name }) => ["--build-arg", name]),
      ...rest.flatMap(({ name, value }) => ["--build-arg", `${name}=${value}`]),
    ],
    env: Object.fromEntries(hidden.map(({ name, value }) => [name, value])),
  };
}

/** Flags that docker, podman and buildah write alike. */
function commonArgs({ dockerfile, target, platform, secrets }: EngineBuild): string[] {
  return [
    "--file",
    dockerfile,
    "--platform",
    platform,
    ...(target === undefined ? [] : ["--target", target]),
    ...secrets.flatMap(({ id, path }) => ["--secret", `id=${id},src=${path}`]),
  ];
}

/** Both read .dockerignore, but not `<dockerfile>.dockerignore`. */
function buildahArgs(request: EngineBuild): EngineCommand {
  const { ignoreFile, imageIdFile, steadyTag, contextDir } = request;
  const { args, env } = hiddenArgs(request);
  const ignore = ignoreFile === undefined ? [] : ["--ignorefile", ignoreFile];
  // A tag keeps the layers from being removed: the next build of the directory begins with them.
  const names = ["--layers", "--tag", `localhost/${steadyTag}`, "--iidfile", imageIdFile];
  // Containers of the build go, also of one that fails or is ended: without the flag even some good ones leave theirs.
  return { args: ["build", "--force-rm", ...names, ...commonArgs(request), ...ignore, ...args, contextDir], env };
}

const dockerServer = ["version", "--format", "{{.Server.Version}}"];

function dockerBuild(request: EngineBuild, verb: readonly string[]): EngineCommand {
  const { args, env } = hiddenArgs(request);
  return { args: [...verb, "--tag", request.uniqueTag, ...commonArgs(request), ...args, request.contextDir], env };
}

const dockerImage = {
  save: ({ archive, uniqueTag }: EngineBuild) => ({ args: ["save", "--output", archive, uniqueTag] }),
  // Its cache is kept apart from its images.
  clean: ({ uniqueTag }: EngineBuild) => ({ args: ["image", "rm", uniqueTag] }),
};

/** In the order in which they are looked for. */
export const engines: readonly Engine[] = [
  {
    // https://github.com/moby/buildkit/blob/v0.21.0/docs/reference/buildctl.md; the Dockerfile frontend reads both ignore files.
    name: "buildctl",
    probes: [["debug", "workers"]],
    needs: "a running buildkitd",
    takesSecrets: true,
    build: ({ contextDir, dockerfile, target, platform, buildArgs, secrets, archive }) => ({
      args: [
        "build",
        "--progress=plain",
        "--frontend=dockerfile.v0",
        `--local=context=${contextDir}`,
        `--local=dockerfile=${dirname(dockerfile)}`,
        `--opt=filename=${basename(dockerfile)}`,
        `--opt=platform=${platform}`,
        ...(target === undefined ? [] : [`--opt=target=${target}`]),
        // It knows no other way: build arguments of buildctl can be read in the process list.
        ...buildArgs.map(({ name, value }) => `--opt=build-arg:${name}=${value}`),
        ...secrets.map(({ id, path }) => `--secret=id=${id},src=${path}`),
        `--output=type=oci,dest=${archive}`,
      ],
    }),
  },
  {
    // https://github.com/containers/buildah/blob/v1.28.2/docs/buildah-build.1.md
    name: "buildah",
    probes: [["info"]],
    needs: "storage that it may write (for users other than root: subordinate ids in /etc/subuid)",
    takesSecrets: true,
    build: buildahArgs,
    save: ({ archive }, imageId) => ({ args: ["push", imageId, `oci-archive:${archive}`] }),
  },
  {
    // https://docs.docker.com/reference/cli/docker/buildx/build/
    name: "docker",
    probes: [dockerServer, ["buildx", "version"]],
    needs: "a running daemon that this user may speak to",
    takesSecrets: true,
    // Its default driver cannot write archives: the image goes to the daemon and is saved from there.
    build: (request) =>
      dockerBuild(request, ["buildx", "build", "--load", "--provenance=false", "--progress", "plain"]),
    ...dockerImage,
  },
  {
    // The same without BuildKit: https://github.com/docker/cli/blob/v28.2.2/docs/reference/commandline/builder_build.md
    name: "docker",
    probes: [dockerServer],
    needs: "a running daemon that this user may speak to",
    takesSecrets: false,
    build: (request) => dockerBuild(request, ["build"]),
    ...dockerImage,
  },
  {
    // https://docs.podman.io/en/latest/markdown/podman-build.1.html
    name: "podman",
    probes: [["info"]],
    needs: "storage that it may write, or its machine running",
    takesSecrets: true,
    build: buildahArgs,
    save: ({ archive }, imageId) => ({ args: ["save", "--format", "oci-archive", "--output", archive, imageId] }),
  },
];
