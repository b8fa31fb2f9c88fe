import { createConnection, type Socket } from "node:net";
import { ServiceError } from "@unkey/base";
import { abortable } from "./abortable.ts";

export interface QmpEvent {
  readonly event: string;
  readonly data: Readonly<Record<string, unknown>>;
}

/** Longer lines do not come from a monitor with a handful of devices. */
const maxLineBytes = 1024 * 1024;
const maxPending = 64;
/** A monitor that serves another client lets us connect and says nothing. */
const greetingTimeoutMs = 5000;

interface Pending {
  resolve(value: unknown): void;
  reject(error: unknown): void;
}

/**
 * A client of the QEMU Machine Protocol (https://www.qemu.org/docs/master/interop/qmp-spec.html). Any answer that is not
 * QMP ends the connection; what was pending then fails with VMM_UNAVAILABLE.
 */
export class QmpClient {
  /** Resolves, with the reason, when the connection is over. */
  readonly closed: Promise<Error>;
  readonly #socket: Socket;
  readonly #onEvent: (event: QmpEvent) => void;
  readonly #pending = new Map<number, Pending>();
  readonly #greeted = Promise.withResolvers<void>();
  #isGreeted = false;
  #isOpen = true;
  #lastId = 0;
  #partial: Buffer[] = [];
  #partialBytes = 0;

  private constructor(socket: Socket, onEvent: (event: QmpEvent) => void) {
    this.#socket = socket;
    this.#onEvent = onEvent;
    const { promise, resolve } = Promise.withResolvers<Error>();
    this.closed = promise;
    this.#greeted.promise.catch(() => undefined);
    socket.on("data", (chunk: Buffer) => this.#take(chunk));
    socket.on("error", (error) => this.#fail(`the monitor's socket failed: ${error.message}`, error));
    socket.on("close", () => this.#fail("the monitor hung up"));
    this.#end = resolve;
  }

  readonly #end: (reason: Error) => void;

  /** Connects and negotiates; rejects with VMM_UNAVAILABLE, or with the signal's reason. */
  static async connect(path: string, onEvent: (event: QmpEvent) => void, signal: AbortSignal): Promise<QmpClient> {
    signal.throwIfAborted();
    const client = new QmpClient(createConnection({ path }), onEvent);
    const limit = AbortSignal.any([signal, AbortSignal.timeout(greetingTimeoutMs)]);
    const abort = (): void => client.#fail("the monitor does not greet: it is stuck or serves another client");
    limit.addEventListener("abort", abort, { once: true });
    try {
      await client.#greeted.promise;
      await client.execute("qmp_capabilities", {}, limit);
      return client;
    } catch (error) {
      client.close();
      signal.throwIfAborted();
      throw error;
    } finally {
      limit.removeEventListener("abort", abort);
    }
  }

  /** Runs one command and returns its result. */
  async execute(command: string, args: Readonly<Record<string, unknown>>, signal: AbortSignal): Promise<unknown> {
    signal.throwIfAborted();
    if (!this.#isOpen) throw unavailable(`${command}: the connection to the monitor is closed`);
    if (this.#pending.size >= maxPending) throw unavailable(`${command}: ${maxPending} commands wait already`);
    const id = ++this.#lastId;
    const { promise, resolve, reject } = Promise.withResolvers<unknown>();
    this.#pending.set(id, { resolve, reject });
    this.#socket.write(`${JSON.stringify({ execute: command, arguments: args, id })}\n`);
    try {
      return await abortable(promise, signal);
    } finally {
      this.#pending.delete(id);
    }
  }

  close(): void {
    this.#fail("closed by this side");
  }

  #take(chunk: Buffer): void {
    let start = 0;
    for (let end = chunk.indexOf(10); end !== -1 && this.#isOpen; end = chunk.indexOf(10, start)) {
      const line = Buffer.concat([...this.#partial, chunk.subarray(start, end)]).toString("utf8");
      this.#partial = [];
      this.#partialBytes = 0;
      start = end + 1;
      this.#takeLine(line);
    }
    if (start < chunk.length) {
      this.#partial.push(chunk.subarray(start));
      this.#partialBytes += chunk.length - start;
    }
    if (this.#partialBytes > maxLineBytes) this.#fail(`the monitor sent a line of more than ${maxLineBytes} bytes`);
  }

  #takeLine(line: string): void {
    if (line.trim() === "") return;
    const message = parseObject(line);
    if (message === undefined) return this.#fail("the monitor sent a line that is not a JSON object");
    if (!this.#isGreeted) {
      if (!("QMP" in message)) return this.#fail("the monitor's greeting is not QMP");
      this.#isGreeted = true;
      return this.#greeted.resolve();
    }
    const { event, data, id, error } = message;
    if (typeof event === "string") return this.#onEvent({ event, data: asObject(data) ?? {} });
    // An answer whose command was given up meanwhile, or one to a command that was not understood at all.
    const pending = typeof id === "number" ? this.#pending.get(id) : undefined;
    if ("return" in message) return pending?.resolve(message["return"]);
    if (error === undefined) return this.#fail("the monitor sent neither event nor answer");
    const description = asObject(error)?.["desc"];
    pending?.reject(
      unavailable(`the monitor refused: ${typeof description === "string" ? description : "no reason given"}`),
    );
  }

  #fail(message: string, cause?: unknown): void {
    if (!this.#isOpen) return;
    this.#isOpen = false;
    const error = unavailable(message, cause);
    this.#socket.destroy();
    this.#greeted.reject(error);
    for (const pending of this.#pending.values()) pending.reject(error);
    this.#end(error);
  }
}

function parseObject(line: string): Record<string, unknown> | undefined {
  try {
    return asObject(JSON.parse(line));
  } catch {
    return undefined;
  }
}

function asObject(value: unknown): Record<string, unknown> | undefined {
  return typeof value === "object" && value !== null && !Array.isArray(value)
    ? (value as Record<string, unknown>)
    : undefined;
}

function unavailable(message: string, cause?: unknown): ServiceError {
  return new ServiceError("VMM_UNAVAILABLE", message, cause === undefined ? {} : { cause });
}
