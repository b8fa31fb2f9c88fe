import assert from "node:assert/strict";
import { execFileSync } from "node:child_process";
import { chmodSync, existsSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { after, before, suite, test } from "node:test";
import { isServiceError } from "@unkey/base";
import * as fc from "fast-check";
import { type Bytes, type GuestApp, type GuestSpec, renderGuestConfig } from "./guest-config.ts";

const busybox = ["/usr/bin/busybox", "/bin/busybox"].find((path) => existsSync(path)) ?? "";
const skip = busybox === "" ? { skip: "needs busybox" } : {};

const app: GuestApp = { argv: ["prog"], env: [], workingDir: "/", user: { uid: 1, gid: 2 }, stopSignal: 15 };
const spec: GuestSpec = { hostname: "guest", app };

suite("the config drive", skip, () => {
  let dir = "";
  before(() => {
    dir = mkdtempSync(join(tmpdir(), "guest-config-"));
    // Stands in for the busybox that the launch executes: prints its arguments.
    writeFileSync(join(dir, "echo-arguments"), "#!/bin/sh\nfor word; do printf '%s\\0' \"$word\"; done\n");
    chmodSync(join(dir, "echo-arguments"), 0o755);
  });
  after(() => rmSync(dir, { recursive: true }));

  function unpack(rendered: Uint8Array): void {
    execFileSync(busybox, ["tar", "-x", "-C", dir], { input: rendered });
  }

  /** What the shell of the guest would execute for this app, word by word. */
  function launchWords(rendered: Uint8Array): Buffer[] {
    unpack(rendered);
    const script = `uid=1 home=/home program=/found/prog; . ${dir}/settings; . ${dir}/app; program=/found/prog; busybox=${dir}/echo-arguments; exec_app`;
    const output = execFileSync(busybox, ["ash", "-c", script], { env: {} });
    const words: Buffer[] = [];
    for (let start = 0; start < output.length; ) {
      const end = output.indexOf(0, start);
      words.push(output.subarray(start, end));
      start = end + 1;
    }
    return words;
  }

  test("a shell reads back every argument and variable byte by byte", () => {
    const bytes = fc.uint8Array({ maxLength: 40 }).map((array) => Buffer.from(array.filter((byte) => byte !== 0)));
    const name = fc
      .string({ unit: "grapheme", minLength: 1, maxLength: 10 })
      .filter((text) => !/[=\0]/.test(text) && text.isWellFormed() && !["HOME", "PATH", "HOSTNAME"].includes(text));
    fc.assert(
      fc.property(
        fc.array(bytes, { maxLength: 5 }),
        fc.uniqueArray(fc.tuple(name, bytes), { maxLength: 5, selector: ([each]) => each }),
        (args, env) => {
          const words = launchWords(renderGuestConfig({ ...spec, app: { ...app, argv: ["prog", ...args], env } }));
          const marker = words.findIndex((word) => word.equals(Buffer.from("start-stop-daemon")));
          const variables = words.slice(words.findIndex((word) => word.equals(Buffer.from("--"))) + 1);
          const expected = env.map(([key, value]) => Buffer.concat([Buffer.from(`${key}=`), value]));
          for (const variable of expected) assert.ok(variables.some((word) => word.equals(variable)));
          const rest = words.slice(marker);
          const dashes = rest.findIndex((word) => word.equals(Buffer.from("--")));
          assert.deepEqual(rest.slice(dashes + 1), args);
        },
      ),
      { numRuns: 60 },
    );
  });

  test("defaults are a container's, and yield to the app's own", () => {
    const plain = launchWords(renderGuestConfig(spec)).map(String);
    assert.ok(plain.includes("HOME=/home"));
    assert.ok(plain.includes("HOSTNAME=guest"));
    assert.ok(plain.includes("PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"));
    const env = [["HOME", "/mine"] as const, ["PATH", "/p"] as const];
    const own = launchWords(renderGuestConfig({ ...spec, app: { ...app, env } })).map(String);
    assert.deepEqual(
      own.filter((word) => /^(HOME|PATH)=/.test(word)),
      ["PATH=/p", "HOME=/mine"],
    );
  });

  test("names and addresses are written as the guest's files", () => {
    unpack(
      renderGuestConfig({
        hostname: "web-1",
        network: {
          addresses: ["10.0.0.2/30", "fd00::2/64"],
          gateways: ["10.0.0.1"],
          dnsServers: ["10.0.0.53"],
          searchDomains: ["internal"],
          mtu: 1400,
        },
        hosts: [{ address: "10.9.9.9", names: ["db"] }],
        app: { ...app, user: { uid: 5, gid: 6, supplementaryGids: [7, 6] } },
      }),
    );
    const read = (name: string): string => readFileSync(join(dir, name), "utf8");
    assert.match(read("hosts"), /^10\.0\.0\.2 web-1\n10\.9\.9\.9 db$/m);
    assert.equal(read("resolv.conf"), "search internal\nnameserver 10.0.0.53\n");
    assert.equal(read("hostname"), "web-1\n");
    assert.equal(read("group"), "g6:x:6:app\ng7:x:7:app\n");
    assert.match(read("settings"), /^addresses='10\.0\.0\.2\/30 fd00::2\/64'$/m);
    assert.match(read("settings"), /^mtu='1400'$/m);
  });
});

test("the same spec gives the same bytes, in whole 4 KiB blocks", () => {
  assert.deepEqual(renderGuestConfig(spec), renderGuestConfig(structuredClone(spec)));
  assert.equal(renderGuestConfig(spec).length % 4096, 0);
});

const network = { addresses: ["10.0.0.2/30"], gateways: [], dnsServers: [] };
const tooLong = "x".repeat(131_072);
const refused: readonly (readonly [
  what: string,
  change: Partial<GuestSpec> | { app: Partial<GuestApp> },
  words: RegExp,
])[] = [
  ["no program", { app: { argv: [] } }, /argv: there is no program/],
  ["an empty program", { app: { argv: [""] } }, /argv: there is no program/],
  ["a NUL in an argument", { app: { argv: ["a", "b\0c"] } }, /argv\[1\]: contains a NUL/],
  ["an overlong argument", { app: { argv: ["a", tooLong] } }, /argv\[1\]: has 131072 bytes/],
  ["too many arguments", { app: { argv: Array<Bytes>(5000).fill("a") } }, /argv: at most 4096/],
  ["more than fits", { app: { argv: Array<Bytes>(20).fill("x".repeat(100_000)) } }, /at most 1048576 fit/],
  ["a variable without a name", { app: { env: [["", "v"]] } }, /not a name of a variable/],
  ["a variable with = in its name", { app: { env: [["a=b", "v"]] } }, /"a=b" is not a name/],
  ["a NUL in a variable", { app: { env: [["A", Buffer.from([0])]] } }, /env "A": contains a NUL/],
  ["a relative working directory", { app: { workingDir: "srv" } }, /workingDir/],
  ["a user id out of range", { app: { user: { uid: 2 ** 32 - 1, gid: 0 } } }, /user: 4294967295/],
  ["a fractional group id", { app: { user: { uid: 0, gid: 0.5 } } }, /user: 0.5/],
  ["too many groups", { app: { user: { uid: 0, gid: 0, supplementaryGids: Array<number>(65).fill(1) } } }, /64/],
  ["no such signal", { app: { stopSignal: 65 } }, /stopSignal: 65/],
  ["a shell in the host name", { hostname: "a';reboot;'" }, /hostname/],
  ["an overlong host name", { hostname: `${"a".repeat(60)}.${"b".repeat(10)}` }, /64 characters/],
  ["an address without prefix", { network: { ...network, addresses: ["10.0.0.2"] } }, /prefix length/],
  ["a prefix out of range", { network: { ...network, addresses: ["10.0.0.2/33"] } }, /prefix length/],
  ["a command as a gateway", { network: { ...network, gateways: ["$(reboot)"] } }, /gateways/],
  ["a zone in a name server", { network: { ...network, dnsServers: ["fe80::1%eth0"] } }, /dnsServers/],
  ["no address at all", { network: { ...network, addresses: [] } }, /at least one/],
  ["an impossible MTU", { network: { ...network, mtu: 10 } }, /mtu: 10/],
  ["a host without a name", { hosts: [{ address: "10.0.0.1", names: [] }] }, /names no host/],
  ["a line break in a host's name", { hosts: [{ address: "10.0.0.1", names: ["a\nb"] }] }, /hosts/],
];
for (const [what, change, words] of refused) {
  test(`${what} is refused`, () => {
    const wrong = "app" in change ? { ...spec, app: { ...app, ...change.app } } : { ...spec, ...change };
    assert.throws(
      () => renderGuestConfig(wrong),
      (error) => isServiceError(error, "GUEST_CONFIG_INVALID") && words.test(error.message),
    );
  });
}

test("a refusal never shows a variable's value", () => {
  const env = [["TOKEN", `s3cr3t\0`] as const];
  assert.throws(
    () => renderGuestConfig({ ...spec, app: { ...app, env } }),
    (error) => !String(error).includes("s3cr3t"),
  );
});
