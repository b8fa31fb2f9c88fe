import { duration } from "./quantities.ts";
import { fit, plain, styled, type Terminal, width } from "./terminal.ts";

export type StepState = "pending" | "running" | "done" | "failed" | "undone" | "skipped";

export interface Step {
  readonly name: string;
  readonly state: StepState;
  /** Epoch milliseconds; 0 before. */
  readonly startedAtMs: number;
  readonly endedAtMs: number;
  readonly detail: string;
}

const marks = {
  pending: ["·", "dim"],
  running: ["…", "cyan"],
  done: ["✓", "green"],
  failed: ["✗", "red"],
  undone: ["↶", "yellow"],
  skipped: ["-", "dim"],
} as const;

const frames = ["⠋", "⠙", "⠹", "⠸", "⠼", "⠴", "⠦", "⠧", "⠇", "⠏"];
const frameMs = 100;
const tellEveryMs = 10_000;

/**
 * Steps with their times. On a live terminal the list is drawn in place and turns while a step runs; elsewhere each
 * step prints a line when it starts, every 10 s how far it is, and one when it ends, which suits logs.
 */
export class StepList implements Disposable {
  readonly #terminal: Terminal;
  readonly #nowMs: () => number;
  readonly #nameWidth: number;
  readonly #timer: NodeJS.Timeout;
  readonly #printed = new Map<string, StepState>();
  #steps: readonly Step[] = [];
  #drawnLines = 0;
  #frame = 0;
  #left = false;

  constructor(terminal: Terminal, nowMs: () => number, options: { readonly nameWidth?: number } = {}) {
    this.#terminal = terminal;
    this.#nowMs = nowMs;
    this.#nameWidth = options.nameWidth ?? 7;
    const turn = (): void => {
      this.#frame++;
      this.#draw();
    };
    this.#timer = (terminal.live ? setInterval(turn, frameMs) : setInterval(() => this.#tell(), tellEveryMs)).unref();
  }

  update(steps: readonly Step[]): void {
    this.#steps = steps;
    if (this.#terminal.live) this.#draw();
    else this.#print();
  }

  /** Leaves the list as it is on the screen; a second time does nothing, for something else may stand below it by then. */
  [Symbol.dispose](): void {
    if (this.#left) return;
    this.#left = true;
    clearInterval(this.#timer);
    if (this.#terminal.live && this.#steps.length > 0) this.#draw();
  }

  #draw(): void {
    // Up to the first line, then each line cleared and written, what is left below cleared: no flicker, no residue.
    const up = this.#drawnLines > 0 ? `\u001b[${this.#drawnLines}A` : "";
    const lines = this.#steps.map((step) => `\u001b[2K${this.#line(step)}\n`);
    this.#terminal.write(`${up}${lines.join("")}\u001b[J`);
    this.#drawnLines = lines.length;
  }

  #print(): void {
    for (const step of this.#steps) {
      const known = this.#printed.get(step.name);
      if (known === step.state || step.state === "pending" || (step.state === "skipped" && known === undefined))
        continue;
      this.#printed.set(step.name, step.state);
      this.#terminal.write(`${this.#line(step)}\n`);
    }
  }

  #tell(): void {
    for (const step of this.#steps) {
      if (step.state === "running") this.#terminal.write(`${this.#line(step, { withTime: true })}\n`);
    }
  }

  #line(step: Step, { withTime = this.#terminal.live || step.state !== "running" } = {}): string {
    const { name, state, startedAtMs, endedAtMs } = step;
    const [still, style] = marks[state];
    const mark = state === "running" && this.#terminal.live ? (frames[this.#frame % frames.length] ?? still) : still;
    // The service's clock may differ from ours: a time is never negative.
    const ms = Math.max(0, (endedAtMs || this.#nowMs()) - startedAtMs);
    const time = startedAtMs === 0 || !withTime ? "" : duration(ms);
    const head = `${name.padEnd(Math.max(this.#nameWidth, width(name)))}  ${time.padStart(9)}`;
    const detail = fit(plain(step.detail), this.#terminal.columns - width(head) - 4);
    return `${styled(this.#terminal, style, mark)} ${head}  ${styled(this.#terminal, "dim", detail)}`.trimEnd();
  }
}
