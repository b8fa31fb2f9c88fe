import assert from "node:assert/strict";
import { test } from "node:test";
import { create } from "@bufbuild/protobuf";
import { UsageSchema } from "@unkey/api/gateway";
import * as fc from "fast-check";
import { CliFailure } from "../failure.ts";
import { renderFailure } from "./failure.ts";
import { age, decimal, duration, gibSeconds, instant, vcpuSeconds } from "./quantities.ts";
import { type Step, StepList } from "./step-list.ts";
import { renderTable } from "./table.ts";
import { fit, fitMiddle, jsonText, plain, type Terminal, terminalOf, width } from "./terminal.ts";
import { renderUsage } from "./usage.ts";

function capture(options: Partial<Terminal> = {}) {
  const written: string[] = [];
  const terminal: Terminal = {
    write: (text) => void written.push(String(text)),
    live: false,
    columns: Number.POSITIVE_INFINITY,
    color: false,
    ...options,
  };
  return { terminal, text: () => written.join("") };
}

test("a table aligns its columns and trims the line ends", () => {
  const table = renderTable(
    capture().terminal,
    [{ title: "APP" }, { title: "VMS", align: "right" }, { title: "IMAGE" }],
    [{ cells: ["hello", "1", "alpine"] }, { cells: ["a-longer-name", "12", ""] }],
  );
  assert.equal(table, ["APP            VMS  IMAGE", "hello            1  alpine", "a-longer-name   12", ""].join("\n"));
});

test("a narrow terminal shrinks only the columns that may shrink", () => {
  const table = renderTable(
    capture({ columns: 30 }).terminal,
    [{ title: "ID" }, { title: "IMAGE", shrinks: true }],
    [{ cells: ["vm_0123456789", "registry.example/team/app:1.2.3"] }],
  );
  assert.equal(table, ["ID             IMAGE", "vm_0123456789  registry.examp…", ""].join("\n"));
});

test("a table never exceeds the terminal while there is something to shrink, and keeps its rows", () => {
  fc.assert(
    fc.property(
      fc.array(fc.string({ maxLength: 60 }), { maxLength: 5 }),
      fc.integer({ min: 24, max: 80 }),
      (names, columns) => {
        const rows = names.map((name) => ({ cells: ["12345678", plain(name)] }));
        const lines = renderTable(
          capture({ columns }).terminal,
          [{ title: "ID" }, { title: "NAME", shrinks: true }],
          rows,
        ).split("\n");
        assert.equal(lines.length, names.length + 2);
        assert.ok(lines.every((line) => width(line) <= columns));
      },
    ),
  );
});

test("quantities are exact to the last digit shown", () => {
  assert.equal(vcpuSeconds(1_234_567n), "1.235");
  assert.equal(gibSeconds(String(256n * 2n ** 20n * 60_000n)), "15.000");
  assert.equal(gibSeconds(""), "0.000");
  assert.equal(gibSeconds("536870912000.5"), "0.500");
  assert.equal(gibSeconds("many"), "?");
  assert.equal(decimal(-1n, 3n, 2), "-0.33");
  assert.equal(decimal(-1n, 1000n, 2), "0.00");
  assert.equal(decimal(5n, 2n, 0), "3");
});

test("decimal agrees with an independent rounding over the whole range", () => {
  fc.assert(
    fc.property(fc.bigInt({ min: -(10n ** 30n), max: 10n ** 30n }), fc.bigInt({ min: 1n, max: 10n ** 12n }), (n, d) => {
      const shown = BigInt(decimal(n, d, 3).replace(".", ""));
      // |shown/1000 - n/d| <= 1/2000
      const distance = shown * d - n * 1000n;
      assert.ok(2n * (distance < 0n ? -distance : distance) <= d);
    }),
  );
});

test("durations and instants read well at each size", () => {
  const cases: Array<[number, string]> = [
    [-5, "0 ms"],
    [80, "80 ms"],
    [4230, "4.2 s"],
    [59_960, "1 min 0 s"],
    [200_000, "3 min 20 s"],
    [3_600_000, "1 h 0 min"],
    [187_200_000, "2 d 4 h"],
  ];
  for (const [ms, text] of cases) assert.equal(duration(ms), text);
  assert.equal(age(0n, 5000), "-");
  assert.equal(age(9000n, 5000), "0 ms");
  assert.equal(instant(0n), "-");
  assert.equal(instant(1_760_000_000_123n), "2025-10-09T08:53:20Z");
});

test("text from elsewhere cannot move the cursor, set the title or break the line", () => {
  assert.equal(plain("a\u001b[2Jb\nc\u0007\u009b31md"), "ab c d");
  assert.equal(plain("\u001b]0;owned\u0007x"), "x");
  const hostile = { text: "a\u001b[2J\u007f\u009b31mé" };
  assert.equal(jsonText(hostile), '{"text":"a\\u001b[2J\\u007f\\u009b31mé"}');
  assert.deepEqual(JSON.parse(jsonText(hostile, 2)), hostile);
  assert.equal(fit("héllo wörld", 6), "héllo…");
  assert.equal(fitMiddle("vm_01m84em5x2fj7s7x3nbc4es5s1", 8), "vm_…s5s1");
  assert.equal(fitMiddle("web", 8), "web");
  assert.equal(fitMiddle("abcd", 1), "…");
});

test("colour needs a terminal or FORCE_COLOR, and NO_COLOR wins", () => {
  const tty = { isTTY: true, columns: 80, write: () => true };
  const pipe = { isTTY: false, columns: 80, write: () => true };
  assert.equal(terminalOf(tty, {}).color, true);
  assert.equal(terminalOf(tty, { NO_COLOR: "1" }).color, false);
  assert.equal(terminalOf(tty, { TERM: "dumb" }).live, false);
  assert.equal(terminalOf(pipe, {}).color, false);
  assert.equal(terminalOf(pipe, { FORCE_COLOR: "1" }).color, true);
  assert.equal(terminalOf(pipe, { FORCE_COLOR: "1", NO_COLOR: "1" }).color, false);
  assert.equal(terminalOf(pipe, {}).columns, Number.POSITIVE_INFINITY);
});

const steps = (states: readonly Step["state"][]): Step[] =>
  states.map((state, i) => ({
    name: ["build", "boot"][i] ?? "",
    state,
    startedAtMs: state === "pending" ? 0 : 1000,
    endedAtMs: state === "done" || state === "failed" ? 2200 : 0,
    detail: state === "done" ? "cached" : "",
  }));

test("without a terminal each step prints one line when it starts and one when it ends", () => {
  const { terminal, text } = capture();
  using list = new StepList(terminal, () => 5000);
  list.update(steps(["running", "pending"]));
  list.update(steps(["running", "pending"]));
  list.update(steps(["done", "running"]));
  list.update(steps(["done", "failed"]));
  assert.equal(text(), ["… build", "✓ build        1.2 s  cached", "… boot", "✗ boot         1.2 s", ""].join("\n"));
});

test("without a terminal a step that takes long says every 10 s how far it is, until it ends", (context) => {
  context.mock.timers.enable({ apis: ["setInterval"] });
  const { terminal, text } = capture();
  let nowMs = 1000;
  const pass = (ms: number): void => {
    nowMs += ms;
    context.mock.timers.tick(ms);
  };
  const pulling = (detail: string): Step[] =>
    steps(["running", "pending"]).map((step) => (step.state === "running" ? { ...step, detail } : step));
  {
    using list = new StepList(terminal, () => nowMs);
    list.update(pulling("pulling"));
    pass(9000);
    list.update(pulling("pulling, 3 MiB of 40 MiB"));
    pass(1000);
    list.update(pulling("pulling, 5 MiB of 40 MiB"));
    pass(10_000);
    list.update(steps(["done", "pending"]));
    pass(20_000);
  }
  pass(20_000);
  assert.equal(
    text(),
    [
      "… build               pulling",
      "… build       10.0 s  pulling, 3 MiB of 40 MiB",
      "… build       20.0 s  pulling, 5 MiB of 40 MiB",
      "✓ build        1.2 s  cached",
      "",
    ].join("\n"),
  );
});

test("what is written after the list was left stays, though it is left a second time", () => {
  const { terminal, text } = capture({ live: true, columns: 80 });
  {
    using list = new StepList(terminal, () => 5000);
    list.update(steps(["done"]));
    list[Symbol.dispose]();
    terminal.write("it serves\n");
  }
  assert.ok(text().endsWith("it serves\n"));
});

test("on a terminal the list is drawn in place, within the columns, with the time so far", () => {
  const { terminal, text } = capture({ live: true, columns: 26 });
  {
    using list = new StepList(terminal, () => 4500);
    list.update(steps(["running", "pending"]));
    list.update([
      { ...(steps(["done"])[0] as Step), detail: "a detail that is too long" },
      ...steps(["done", "running"]).slice(1),
    ]);
  }
  const draws = text()
    .split("\u001b[J")
    .filter((draw) => draw !== "");
  assert.deepEqual(draws, [
    "\u001b[2K⠋ build        3.5 s\n\u001b[2K· boot\n",
    "\u001b[2A\u001b[2K✓ build        1.2 s  a d…\n\u001b[2K⠋ boot         3.5 s\n",
    "\u001b[2A\u001b[2K✓ build        1.2 s  a d…\n\u001b[2K⠋ boot         3.5 s\n",
  ]);
});

test("a failure is one line what, the evidence, one line next step", () => {
  const failure = new CliFailure("health failed", {
    nextStep: "Look at the log.",
    evidence: ["listening on 1"],
    reason: "X",
  });
  const { terminal } = capture();
  const render = (json: boolean) => renderFailure(failure, { terminal, json, env: {} });
  assert.equal(render(false), "error: health failed\n  | listening on 1\nnext:  Look at the log.");
  assert.deepEqual(JSON.parse(render(true)), {
    error: {
      message: "health failed",
      nextStep: "Look at the log.",
      reason: "X",
      exitCode: 1,
      evidence: ["listening on 1"],
    },
  });
});

test("usage shows apps, their VMs, what is still open, the total and how far it reaches", () => {
  const line = (vmId: string, complete: boolean) => ({
    appId: "app_1",
    vmId,
    quantities: {
      cpuTimeUs: 2_500_000n,
      memoryByteMs: String(2n ** 28n * 60_000n),
      diskByteMs: String(2n ** 30n * 60_000n),
      netInBytes: 2048n,
      netOutBytes: 5_000_000n,
    },
    amount: { currency: "USD", amount: "0.000423" },
    samplesExpected: 600n,
    samplesSeen: 598n,
    gaps: [{ fromMs: 1n, toMs: 2n }],
    complete,
  });
  const usage = create(UsageSchema, {
    report: {
      fromMs: 1_760_000_000_000n,
      toMs: 1_760_000_090_000n,
      asOfMs: 1_760_000_060_000n,
      apps: [line("", true)],
      vms: [line("vm_a", true), line("vm_b", false)],
      total: { currency: "USD", amount: "0.000423" },
      priceBookId: "book_1",
    },
    appNames: { app_1: "hello" },
  });
  assert.equal(
    renderUsage(capture({ columns: 110 }).terminal, usage),
    [
      "APP / VM  VCPU·S  MEM GIB·S  DISK GIB·S  NET IN  NET OUT  SAMPLES  GAPS        AMOUNT",
      "hello      2.500     15.000      60.000   2 KiB  4.8 MiB  598/600     1  0.000423 USD",
      "  vm_a     2.500     15.000      60.000   2 KiB  4.8 MiB  598/600     1  0.000423 USD",
      "  vm_b *   2.500     15.000      60.000   2 KiB  4.8 MiB  598/600     1  0.000423 USD",
      "total                                                                    0.000423 USD",
      "From 2025-10-09T08:53:20Z to 2025-10-09T08:54:50Z, complete up to 2025-10-09T08:54:20Z. Price book book_1.",
      "* still runs, or its last windows are on their way.",
      "",
    ].join("\n"),
  );
  assert.match(renderUsage(capture().terminal, create(UsageSchema, {})), /^No usage in this period yet/);
});
