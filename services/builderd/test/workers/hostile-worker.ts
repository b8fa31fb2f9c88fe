import { spawn } from "node:child_process";
import { linkSync, readdirSync, readFileSync, statSync, writeFileSync, writeSync } from "node:fs";
import { connect, Socket } from "node:net";

/*
 * What a worker may become when somebody takes it over through a layer: it does as its first argument says, and tells what it could
 * do in the message of a failure.
 */

const control = new Socket({ fd: 3 });
const mode = process.argv[2] ?? "";

function frame(body: string): Buffer {
  const bytes = Buffer.from(body);
  const head = Buffer.alloc(4);
  head.writeUInt32BE(bytes.length);
  return Buffer.concat([head, bytes]);
}

function say(message: unknown): void {
  control.write(frame(JSON.stringify(message)));
}

function tell(facts: unknown): void {
  const message = JSON.stringify(facts).slice(0, 900);
  say({ kind: "failed", reason: "IMAGE_LAYER_INVALID", message, metadata: {} });
}

const forever = (): void => void setInterval(() => undefined, 1000);
const rootfs = {
  sizeBytes: 5,
  passwd: "",
  group: "",
  droppedXattrs: [],
  packages: { packages: [], unread: [], unreadOmitted: 0 },
};

const modes: Record<string, () => unknown> = {
  garbage: () => control.write("HTTP/1.1 200 OK\r\n\r\n<html>"),
  "huge-frame": () => control.write(Buffer.from([0x7f, 0xff, 0xff, 0xff])),
  "no-json": () => control.write(frame("{")),
  "unknown-kind": () => say({ kind: "shutdown" }),
  "foreign-reason": () =>
    say({ kind: "failed", reason: "UNAUTHENTICATED", message: "log in at evil.example", metadata: {} }),
  "control-characters": () =>
    say({ kind: "failed", reason: "IMAGE_LAYER_INVALID", message: "\u001b[2J", metadata: {} }),
  "early-done": () => say({ kind: "done", rootfs: null }),
  "other-job": () => process.stdin.resume().once("end", () => say({ kind: "done", rootfs })),
  flood: async () => {
    const many = Buffer.concat(Array.from({ length: 1000 }, () => frame('{"kind":"progress","done":1,"total":2}')));
    for (;;) if (!control.write(many)) await new Promise((resolve) => control.once("drain", resolve));
  },
  hang: forever,
  "stops-reading": () => {
    tell("no");
    forever();
  },
  exits: () => process.exit(3),
  "eats-memory": () => {
    const kept: Buffer[] = [];
    for (;;) kept.push(Buffer.alloc(1 << 24, 1));
  },
  "fills-disk": () => {
    for (let at = 0; ; at++) writeFileSync(`out/${at}`, Buffer.alloc(1 << 20, 1));
  },
  "hides-disk": () => {
    for (let at = 0; ; at++) {
      writeFileSync(`out/${at % 8}`, Buffer.alloc(1 << 20, 1), { flag: "a" });
      if (at < 8) linkSync(`out/${at}`, `out/other-${at}`);
    }
  },
  "many-files": () => {
    for (let at = 0; ; at++) writeFileSync(`out/${at}`, "");
  },
  "large-file": () => {
    for (;;) writeFileSync("out/content", Buffer.alloc(1 << 20, 1), { flag: "a" });
  },
  forks: () => {
    const sleepers = Array.from({ length: 200 }, () => {
      const child = spawn("/bin/sleep", ["1000"], { stdio: "ignore", detached: true });
      child.on("error", () => undefined);
      return child.pid;
    });
    writeSync(2, "forked\n");
    tell({ started: sleepers.filter((pid) => pid !== undefined).length });
    forever();
  },
  explores: async () => {
    const [, , address = ""] = mode.split(" ");
    const refusal = (body: () => unknown): string => {
      try {
        body();
        return "done";
      } catch (error) {
        return (error as NodeJS.ErrnoException).code ?? "error";
      }
    };
    const dial = (port: number, host: string) =>
      new Promise<string>((resolve) => {
        const socket = connect({ port, host, timeout: 2000 });
        socket.once("connect", () => resolve("connected"));
        socket.once("timeout", () => resolve("timeout"));
        socket.once("error", (error: NodeJS.ErrnoException) => resolve(error.code ?? "error"));
      });
    const status = readFileSync("/proc/self/status", "utf8");
    tell({
      uid: process.getuid?.(),
      groups: process.getgroups?.(),
      capabilities: /CapEff:\s*(\w+)/.exec(status)?.[1],
      bounding: /CapBnd:\s*(\w+)/.exec(status)?.[1],
      noNewPrivileges: /NoNewPrivs:\s*(\d)/.exec(status)?.[1],
      processes: readdirSync("/proc").filter((name) => /^\d+$/.test(name)).length,
      root: readdirSync("/").toSorted().join(" "),
      interfaces: readFileSync("/proc/net/dev", "utf8").split("\n").length - 3,
      network: await dial(Number(process.argv[3]), "127.0.0.1"),
      internet: await dial(443, "192.0.2.1"),
      environment: Object.keys(process.env).toSorted().join(" "),
      writesIn: refusal(() => writeFileSync("in/file", "")),
      writesUsr: refusal(() => writeFileSync("/usr/file", "")),
      writesHere: refusal(() => writeFileSync("file", "")),
      data: refusal(() => readdirSync(process.argv[4] ?? "")),
      passwd: refusal(() => readFileSync("/etc/shadow")),
      runs: refusal(() => statSync("/proc/1/root/etc")),
      ...(address === "" ? {} : { address }),
    });
  },
};

await modes[mode]?.();
