import assert from "node:assert/strict";
import { test } from "node:test";
import { isServiceError } from "@unkey/base";
import { parseImageConfig } from "./image-config.ts";
import { resolveUser } from "./image-user.ts";
import { InvalidInput } from "./invalid-input.ts";

const parse = (config: object, rest: object = {}) =>
  parseImageConfig(Buffer.from(JSON.stringify({ os: "linux", architecture: "amd64", config, ...rest })));

test("reads what an image says and fills in what it leaves out", () => {
  const full = parse(
    {
      Entrypoint: ["/bin/app"],
      Cmd: ["--port", "80"],
      Env: ["A=1", "B=x=y", "C=", "BARE", "A=2"],
      User: "app:web",
      WorkingDir: "/srv",
      StopSignal: "quit",
      ExposedPorts: { "8080/tcp": {}, "53/udp": {}, "80": {} },
    },
    { rootfs: { diff_ids: [`sha256:${"a".repeat(64)}`] } },
  );
  assert.deepEqual(full, {
    platform: { os: "linux", architecture: "amd64", variant: "" },
    argv: ["/bin/app", "--port", "80"],
    env: [
      ["A", "2"],
      ["B", "x=y"],
      ["C", ""],
      ["PATH", "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"],
    ],
    user: "app:web",
    workingDir: "/srv",
    stopSignal: "SIGQUIT",
    exposedPorts: [80, 8080],
    diffIds: [`sha256:${"a".repeat(64)}`],
  });
  const empty = parse({ Entrypoint: null, Cmd: null, Env: null, ExposedPorts: null });
  assert.deepEqual(
    [empty.argv, empty.user, empty.workingDir, empty.stopSignal, empty.exposedPorts],
    [[], "", "/", "SIGTERM", []],
  );
});

for (const [written, name] of [
  ["SIGINT", "SIGINT"],
  ["15", "SIGTERM"],
  ["RTMIN+3", "SIGRTMIN+3"],
  ["sigrtmax-1", "SIGRTMAX-1"],
]) {
  test(`the stop signal ${written} is ${name}`, () => assert.equal(parse({ StopSignal: written }).stopSignal, name));
}

for (const [name, config, words] of [
  ["a command that is one string", { Cmd: "sh -c x" }, /Cmd is not an array/],
  ["a command of numbers", { Entrypoint: [1] }, /Entrypoint/],
  ["a NUL in an argument", { Cmd: ["a\0b"] }, /NUL/],
  ["a variable without a name", { Env: ["=x"] }, /without a name/],
  ["a relative working directory", { WorkingDir: "srv" }, /not absolute/],
  ["a signal that is none", { StopSignal: "SIGNOPE" }, /not a signal/],
  ["port 0", { ExposedPorts: { "0/tcp": {} } }, /not a port/],
  ["port 70000", { ExposedPorts: { "70000/tcp": {} } }, /not a port/],
  [
    "thousands of ports",
    { ExposedPorts: Object.fromEntries(Array.from({ length: 300 }, (_, at) => [`${at + 1}/tcp`, {}])) },
    /256 ports/,
  ],
  ["thousands of arguments", { Cmd: Array.from({ length: 1025 }, () => "x") }, /1024/],
  ["an argument of megabytes", { Cmd: ["x".repeat(100_000)] }, /65536 bytes/],
] as const) {
  test(`refuses ${name}`, () => {
    assert.throws(
      () => parse(config),
      (error) => error instanceof InvalidInput && words.test(error.message),
    );
  });
}

const passwd =
  "root:x:0:0:root:/root:/bin/sh\n# comment\nweb:x:33:44::/srv/web:/bin/sh\nbroken\n1000:x:2000:2000::/n:/bin/sh\n";
const group = "root:x:0:\nweb:x:44:\nlogs:x:50:root,web\nmail:x:51:web\nall:x:52:weber\n";
for (const [user, expected] of [
  ["", { uid: 0, gid: 0, groups: [50], home: "/root" }],
  ["root", { uid: 0, gid: 0, groups: [50], home: "/root" }],
  ["web", { uid: 33, gid: 44, groups: [50, 51], home: "/srv/web" }],
  ["33", { uid: 33, gid: 44, groups: [50, 51], home: "/srv/web" }],
  ["web:mail", { uid: 33, gid: 51, groups: [], home: "/srv/web" }],
  ["web:7", { uid: 33, gid: 7, groups: [], home: "/srv/web" }],
  ["4000", { uid: 4000, gid: 0, groups: [], home: "/" }],
  ["4000:5000", { uid: 4000, gid: 5000, groups: [], home: "/" }],
  [":50", { uid: 0, gid: 50, groups: [], home: "/root" }],
  ["1000", { uid: 2000, gid: 2000, groups: [], home: "/n" }], // a name of digits is a name first
] as const) {
  test(`the user "${user}" is resolved`, () => assert.deepEqual(resolveUser(user, passwd, group), expected));
}

for (const user of ["nobody", "web:nogroup", "4294967295", "-1", "0x10"]) {
  test(`the user "${user}" is unknown`, () => {
    assert.throws(
      () => resolveUser(user, passwd, group),
      (error) => isServiceError(error, "IMAGE_USER_UNKNOWN"),
    );
  });
}

test("an image without account files knows numbers only", () => {
  assert.deepEqual(resolveUser("65532:65532", "", ""), { uid: 65_532, gid: 65_532, groups: [], home: "/" });
  assert.throws(() => resolveUser("app", "", ""), /not in its \/etc\/passwd/);
});
