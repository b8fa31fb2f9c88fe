/**
 * `npm run demo [-- --once] [--ports auto]`: the whole path on this machine, through the same commands that a user types: start
 * the platform, assemble an image, deploy it, open it, use it, stop it, read the bill.
 */
import { mkdtemp, rm } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { parseArgs } from "node:util";
import { assembleHello } from "./hello-image.ts";
import { CommandFailed, UnkeyCommand } from "./unkey-command.ts";
import { generateLoad, openUntilOk } from "./visit.ts";

const app = "hello";
const flags = readFlags();

const interrupted = new AbortController();
for (const signal of ["SIGINT", "SIGTERM"] as const) {
  process.on(signal, () => {
    if (interrupted.signal.aborted) process.exit(130);
    interrupted.abort();
  });
}

process.exitCode = await demo(interrupted.signal);

function readFlags() {
  try {
    return parseArgs({
      options: { once: { type: "boolean", default: false }, ports: { type: "string", default: "default" } },
    }).values;
  } catch {
    console.error("usage: npm run demo [-- --once] [--ports default|auto]");
    process.exit(2);
  }
}

/** Yields the exit status. Whatever happens, the platform is taken down again. */
async function demo(signal: AbortSignal): Promise<number> {
  const scratch = await mkdtemp(join(tmpdir(), "unkey-demo-"));
  // A platform of its own, whatever UNKEY_HOME says: in the end all its VMs are deleted.
  const home = join(scratch, "home");
  const unkey = new UnkeyCommand(home);
  let status = 0;
  try {
    say("Starting the platform: six daemons, one data directory.");
    await unkey.show(["dev", "up", "--ports", flags.ports], signal);

    say("Assembling a container image from this host's static busybox.");
    const layout = join(scratch, app);
    const image = await assembleHello(layout);
    console.log(`${layout}: OCI layout, manifest ${image.manifestDigest}`);

    say("Deploying it: image, root filesystem, microVM, route.");
    await unkey.show(["deploy", layout, "--app", app], signal);

    const { url } = (await unkey.json(["apps", app], signal)) as { url: string };
    const { caFile } = await unkey.profile();
    say(`Opening ${url} with the demo's certificate authority.`);
    const visit = { url, caFile, signal };
    console.log((await openUntilOk(visit)).trimEnd());

    say("Making a little load.");
    console.log(await generateLoad(visit));

    say("Stopping the VM. Its last window is closed at once.");
    await unkey.show(["stop", app], signal);

    say("What it cost, from counters that the host read every 100 ms:");
    await showUsage(unkey, signal);

    if (!flags.once) {
      await unkey.show(["start", app], signal);
      say(`${url} serves again until Ctrl-C. In another terminal, as root:`);
      console.log(`  export UNKEY_HOME=${home} PATH="$PWD/node_modules/.bin:$PATH"`);
      console.log(`  curl --cacert ${caFile} ${url}`);
      console.log("  unkey usage; unkey logs hello; unkey platform; unkey --help");
      await untilAborted(signal);
    }
  } catch (error) {
    if (!signal.aborted) {
      status = 1;
      console.error(error instanceof CommandFailed ? `\n${error.message}` : error);
    }
  }
  try {
    say("Taking everything down.");
    await unkey.show(["dev", "down", "--delete-vms"]);
    await rm(scratch, { recursive: true, force: true });
  } catch (error) {
    console.error(error instanceof Error ? error.message : error);
    console.error(`Not everything could be taken down; the logs are in ${join(home, "logs")}.`);
    status ||= 1;
  }
  return signal.aborted && flags.once ? 130 : status;
}

/** The stopped VM's usage is complete within 2 s of its end; asks until it is. */
async function showUsage(unkey: UnkeyCommand, signal: AbortSignal): Promise<void> {
  const deadlineMs = performance.now() + 10_000;
  for (;;) {
    const usage = (await unkey.json(["usage"], signal)) as { report?: { vms?: { complete?: boolean }[] } };
    const vms = usage.report?.vms ?? [];
    if (vms.length > 0 && vms.every((vm) => vm.complete === true)) break;
    if (performance.now() > deadlineMs) throw new Error("the usage of a stopped VM was not complete after 10 s");
    await new Promise((resolve) => setTimeout(resolve, 200));
  }
  await unkey.show(["usage"], signal);
}

function say(text: string): void {
  console.log(`\n▸ ${text}`);
}

async function untilAborted(signal: AbortSignal): Promise<void> {
  if (signal.aborted) return;
  // A timer keeps the process alive while nothing else does.
  const alive = setInterval(() => undefined, 60_000);
  await new Promise<void>((resolve) => signal.addEventListener("abort", () => resolve(), { once: true }));
  clearInterval(alive);
}
