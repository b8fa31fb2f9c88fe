// Stands for buildctl, docker and podman: takes the command lines that they take, refuses all others as they do, and
// keeps what it was asked in FAKE_ENGINE_DIR. FAKE_ENGINE_<NAME> tells it how to behave.
import { spawn } from "node:child_process";
import { appendFileSync, copyFileSync, existsSync, mkdirSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { join } from "node:path";

const [name, ...argv] = process.argv.slice(2);
const directory = process.env.FAKE_ENGINE_DIR;
const behaviour = process.env[`FAKE_ENGINE_${name.toUpperCase()}`] ?? "";
const image = (tag) => join(directory, `image-${encodeURIComponent(tag)}`);

function fail(message, code = 125) {
  process.stderr.write(`${message}\n`);
  process.exit(code);
}

/** Flags as the real programs know them: `value` takes one, `list` may be repeated, `bool` stands alone or with =. */
function parse(args, flags) {
  const found = {};
  const words = [];
  for (let at = 0; at < args.length; at++) {
    const arg = args[at];
    if (!arg.startsWith("--")) {
      words.push(arg);
      continue;
    }
    const [flag, attached] = arg.includes("=")
      ? [arg.slice(2, arg.indexOf("=")), arg.slice(arg.indexOf("=") + 1)]
      : [arg.slice(2)];
    const kind = flags[flag];
    if (kind === undefined) fail(`unknown flag: --${flag}`);
    if (kind === "bool") found[flag] = attached ?? "true";
    else {
      const value = attached ?? args[++at];
      if (value === undefined) fail(`flag needs an argument: --${flag}`);
      if (kind === "value" && flag in found) fail(`--${flag} is there twice`);
      found[flag] = kind === "list" ? [...(found[flag] ?? []), value] : value;
    }
  }
  return { found, words };
}

function record(entry) {
  const held = Object.fromEntries(Object.entries(process.env).filter(([key]) => /^(?:ARG_|UNKEY_)/.test(key)));
  appendFileSync(join(directory, "log"), `${JSON.stringify({ name, argv, env: held, ...entry })}\n`);
}

function readSecrets(list = []) {
  return list.map((text) => {
    const { id, src } = Object.fromEntries(text.split(",").map((field) => field.split("=")));
    return [id, readFileSync(src, "utf8")];
  });
}

function build({ context, dockerfile, secrets, buildArgs = [] }) {
  if (!existsSync(join(context, "."))) fail(`${context}: no such directory`);
  readFileSync(dockerfile);
  const given = buildArgs.map((text) => (text.includes("=") ? text : `${text}=${process.env[text]}`));
  record({ context, dockerfile, secrets: readSecrets(secrets), given });
  process.stdout.write("#1 [internal] load build definition\n#2 DONE \u001b[31m0.1s\u001b[0m\n");
  if (behaviour === "fails") fail("ERROR: process did not complete successfully: exit code: 7", 1);
  if (behaviour.startsWith("hangs")) {
    if (behaviour === "hangs hard") process.on("SIGTERM", () => {});
    const child = spawn("/bin/sleep", ["1000"], { stdio: "inherit" });
    writeFileSync(join(directory, "pids"), `${process.pid} ${child.pid}`);
    process.stdout.write("#3 RUN sleep\n");
    setInterval(() => {}, 1000);
    return false;
  }
  return true;
}

const [verb, second] = argv;
if (behaviour === "down") fail("Cannot connect to the daemon. Is it running?", 1);
if (name === "buildctl") {
  if (verb === "debug" && second === "workers") process.exit(0);
  if (verb !== "build") fail(`No help topic for '${verb}'`, 3);
  const flags = { progress: "value", frontend: "value", local: "list", opt: "list", secret: "list", output: "list" };
  const { found, words } = parse(argv.slice(1), flags);
  if (words.length > 0) fail(`unexpected ${words.join(" ")}`);
  if (found.frontend !== "dockerfile.v0" || found.progress !== "plain") fail("please specify --frontend");
  const local = Object.fromEntries(found.local.map((text) => text.split("=")));
  const options = found.opt.map((text) => [text.slice(0, text.indexOf("=")), text.slice(text.indexOf("=") + 1)]);
  const odd = options.find(([key]) => !/^(?:filename|platform|target|build-arg:.+)$/.test(key));
  if (odd !== undefined) fail(`invalid opt ${odd[0]}`);
  const output = Object.fromEntries(found.output[0].split(",").map((field) => field.split("=")));
  if (output.type !== "oci") fail(`exporter ${output.type} could not be found`);
  const buildArgs = options
    .filter(([key]) => key.startsWith("build-arg:"))
    .map(([key, value]) => `${key.slice(10)}=${value}`);
  const { filename } = Object.fromEntries(options);
  if (
    build({ context: local.context, dockerfile: join(local.dockerfile, filename), secrets: found.secret, buildArgs })
  ) {
    copyFileSync(process.env.FAKE_ENGINE_ARCHIVE, output.dest);
  }
} else if (verb === "info" && name === "podman") process.exit(0);
else if (verb === "version" && name === "docker") {
  if (argv.join(" ") !== "version --format {{.Server.Version}}") fail("unknown flag");
} else if (name === "docker" && verb === "buildx" && behaviour === "legacy")
  fail("docker: unknown command: docker buildx", 1);
else if (name === "docker" && verb === "buildx" && second === "version") process.stdout.write("buildx v0.20.0\n");
else if (verb === "build" || (verb === "buildx" && second === "build")) {
  const buildx = verb === "buildx";
  const common = { file: "value", tag: "list", platform: "value", target: "value", "build-arg": "list" };
  const kinds = {
    docker: buildx ? { ...common, load: "bool", provenance: "value", progress: "value", secret: "list" } : common,
    podman: { ...common, layers: "bool", "force-rm": "bool", iidfile: "value", ignorefile: "value", secret: "list" },
  };
  const { found, words } = parse(argv.slice(buildx ? 2 : 1), kinds[name]);
  if (words.length !== 1) fail(`"${name} build" requires 1 argument.`);
  if (buildx && found.load !== "true") fail("No output specified", 1);
  if (build({ context: words[0], dockerfile: found.file, secrets: found.secret, buildArgs: found["build-arg"] })) {
    mkdirSync(directory, { recursive: true });
    const id = name === "podman" ? "0123abcd" : found.tag[0];
    if (found.iidfile !== undefined) writeFileSync(found.iidfile, `sha256:${id}\n`);
    writeFileSync(image(id), "");
  }
} else if (verb === "save") {
  const { found, words } = parse(
    argv.slice(1),
    name === "podman" ? { output: "value", format: "value" } : { output: "value" },
  );
  if (!existsSync(image(words[0].replace("sha256:", "")))) fail(`No such image: ${words[0]}`, 1);
  copyFileSync(process.env.FAKE_ENGINE_ARCHIVE, found.output);
} else if (name === "docker" && verb === "image" && second === "rm") {
  record({});
  if (!existsSync(image(argv[2]))) fail(`No such image: ${argv[2]}`, 1);
  rmSync(image(argv[2]));
} else fail(`${name}: unknown command ${argv.join(" ")}`);
