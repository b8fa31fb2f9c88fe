import assert from "node:assert/strict";
import { mkdtemp, rm } from "node:fs/promises";
import { createServer, type Server, type Socket } from "node:net";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { test } from "node:test";
import { isServiceError } from "@unkey/base";
import { QmpClient, type QmpEvent } from "./qmp-client.ts";

const greeting = '{"QMP": {"version": {"qemu": {"major": 7}}, "capabilities": ["oob"]}}\r\n';

/** A monitor that follows a script: it greets, accepts the capabilities, then does what `answer` says with each command. */
class ScriptedMonitor implements AsyncDisposable {
  readonly path: string;
  readonly events: QmpEvent[] = [];
  readonly #server: Server;
  readonly #dir: string;

  private constructor(dir: string, server: Server) {
    this.#dir = dir;
    this.path = join(dir, "qmp.sock");
    this.#server = server;
  }

  static async start(
    answer: (socket: Socket, command: { execute: string; id: number }) => void,
    hello: string = greeting,
  ): Promise<ScriptedMonitor> {
    const sockets = new Set<Socket>();
    const server = createServer((socket) => {
      sockets.add(socket);
      socket.on("error", () => undefined);
      socket.write(hello);
      let text = "";
      socket.on("data", (chunk) => {
        text += chunk.toString();
        for (let end = text.indexOf("\n"); end !== -1; end = text.indexOf("\n")) {
          const command = JSON.parse(text.slice(0, end)) as { execute: string; id: number };
          text = text.slice(end + 1);
          if (command.execute === "qmp_capabilities") socket.write(`{"return": {}, "id": ${command.id}}\r\n`);
          else answer(socket, command);
        }
      });
    });
    server.on("close", () => sockets.clear());
    const monitor = new ScriptedMonitor(await mkdtemp(join(tmpdir(), "qmp-")), server);
    await new Promise<void>((resolve) => server.listen(monitor.path, resolve));
    return monitor;
  }

  async connect(signal: AbortSignal = AbortSignal.timeout(10_000)): Promise<QmpClient> {
    return QmpClient.connect(this.path, (event) => this.events.push(event), signal);
  }

  async [Symbol.asyncDispose](): Promise<void> {
    this.#server.close();
    await rm(this.#dir, { recursive: true });
  }
}

const signal = AbortSignal.timeout(30_000);
const unavailable = (pattern: RegExp) => (error: unknown) =>
  isServiceError(error, "VMM_UNAVAILABLE") && pattern.test(error.message);

test("answers are matched by id, in whatever order and pieces they come, with events in between", async () => {
  const held: number[] = [];
  await using monitor = await ScriptedMonitor.start((socket, { execute, id }) => {
    held.push(id);
    if (execute !== "second") return;
    const [first] = held;
    const text =
      `{"return": "two", "id": ${id}}\r\n{"event": "STOP", "timestamp": {}}\r\n` +
      `{"event": "SHUTDOWN", "data": {"guest": true}}\r\n{"return": "one", "id": ${first}}\r\n`;
    for (const piece of text.match(/[^]{1,7}/g) ?? []) socket.write(piece);
  });
  const client = await monitor.connect();
  const answers = await Promise.all([client.execute("first", {}, signal), client.execute("second", {}, signal)]);
  assert.deepEqual(answers, ["one", "two"]);
  assert.deepEqual(monitor.events, [
    { event: "STOP", data: {} },
    { event: "SHUTDOWN", data: { guest: true } },
  ]);
  client.close();
});

test("a refused command fails with the monitor's words, and the connection lives on", async () => {
  await using monitor = await ScriptedMonitor.start((socket, { execute, id }) => {
    if (execute === "bad") socket.write(`{"error": {"class": "GenericError", "desc": "no such thing"}, "id": ${id}}\n`);
    else socket.write(`{"return": 1, "id": ${id}}\n`);
  });
  const client = await monitor.connect();
  await assert.rejects(client.execute("bad", {}, signal), unavailable(/refused: no such thing/));
  assert.equal(await client.execute("good", {}, signal), 1);
  client.close();
});

test("a caller's patience ends one command, whose late answer then disturbs nobody", async () => {
  let late: (() => void) | undefined;
  await using monitor = await ScriptedMonitor.start((socket, { execute, id }) => {
    if (execute === "slow") late = () => socket.write(`{"return": "late", "id": ${id}}\n`);
    else socket.write(`{"return": "quick", "id": ${id}}\n`);
  });
  const client = await monitor.connect();
  await assert.rejects(client.execute("slow", {}, AbortSignal.timeout(20)), { name: "TimeoutError" });
  late?.();
  assert.equal(await client.execute("quick", {}, signal), "quick");
  client.close();
});

for (const [what, bytes, words] of [
  ["a line that is not JSON", "nonsense\n", /not a JSON object/],
  ["a JSON array", "[1]\n", /not a JSON object/],
  ["a message of no kind", '{"hello": 1}\n', /neither event nor answer/],
  ["a line without end", "x".repeat(1024 * 1024 + 1), /more than 1048576 bytes/],
  ["binary noise", Buffer.from([0, 255, 10, 13, 10]), /not a JSON object/],
] as const) {
  test(`${what} ends the connection and fails what was pending`, async () => {
    await using monitor = await ScriptedMonitor.start((socket) => void socket.write(bytes));
    const client = await monitor.connect();
    await assert.rejects(client.execute("anything", {}, signal), unavailable(words));
    assert.match((await client.closed).message, words);
    await assert.rejects(client.execute("more", {}, signal), unavailable(/closed/));
  });
}

test("a hang-up fails what was pending", async () => {
  await using monitor = await ScriptedMonitor.start((socket) => void socket.destroy());
  const client = await monitor.connect();
  await assert.rejects(client.execute("anything", {}, signal), unavailable(/hung up/));
});

test("what does not greet as QMP is not a monitor", async () => {
  for (const hello of ["HTTP/1.1 200 OK\r\n", '{"return": {}}\n']) {
    await using monitor = await ScriptedMonitor.start(() => undefined, hello);
    await assert.rejects(monitor.connect(), (error) => isServiceError(error, "VMM_UNAVAILABLE"));
  }
});

test("a monitor that says nothing is given up with the caller's signal", async () => {
  await using monitor = await ScriptedMonitor.start(() => undefined, "");
  const reason = new Error("withdrawn");
  const giveUp = new AbortController();
  setTimeout(() => giveUp.abort(reason), 20);
  await assert.rejects(monitor.connect(giveUp.signal), (error) => error === reason);
});

test("a socket that nobody serves is unavailable", async () => {
  await assert.rejects(
    QmpClient.connect(join(tmpdir(), "qmp-nobody.sock"), () => undefined, signal),
    unavailable(/socket failed/),
  );
});

test("more commands than a monitor should have to remember are refused", async () => {
  await using monitor = await ScriptedMonitor.start(() => undefined);
  const client = await monitor.connect();
  const pending = Array.from({ length: 64 }, () => client.execute("wait", {}, signal));
  await assert.rejects(client.execute("one more", {}, signal), unavailable(/64 commands wait/));
  client.close();
  for (const each of pending) await assert.rejects(each, unavailable(/closed by this side/));
});
