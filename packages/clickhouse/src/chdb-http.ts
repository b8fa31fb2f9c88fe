import { createHash, timingSafeEqual } from "node:crypto";
import { createServer, type IncomingMessage, type Server, type ServerResponse } from "node:http";
import { type ChdbEngine, EngineBusy, type Insertion, type Statement } from "./chdb-engine.ts";
import { chdbUser } from "./chdb-protocol.ts";
import { maxInsertBytes } from "./http-clickhouse.ts";

const maxStatementBytes = 256 * 1024;
const maxConnections = 32;

/** A refusal as ClickHouse words it, so that its clients read number and name from the body. */
class Refusal extends Error {
  readonly status: number;
  readonly code: number;

  constructor(status: number, code: number, type: string, message: string) {
    super(`Code: ${code}. DB::Exception: ${message}. (${type})`);
    this.status = status;
    this.code = code;
  }
}

/**
 * The part of ClickHouse's HTTP interface (https://clickhouse.com/docs/interfaces/http) that its official client uses: GET /ping
 * and POST / with settings, `param_…` scalars and the statement, an insert's rows being the body. Everything needs the password.
 */
export function createChdbHttpServer(engine: Pick<ChdbEngine, "execute" | "insert">, password: string): Server {
  const expected = digest(`Basic ${Buffer.from(`${chdbUser}:${password}`).toString("base64")}`);
  const server = createServer({ requestTimeout: 60_000, headersTimeout: 10_000, keepAliveTimeout: 30_000 });
  server.maxConnections = maxConnections;
  server.on("request", (request, response) => {
    answer(engine, expected, request, response).catch((error: unknown) => fail(request, response, error));
  });
  return server;
}

async function answer(
  engine: Pick<ChdbEngine, "execute" | "insert">,
  expected: Buffer,
  request: IncomingMessage,
  response: ServerResponse,
): Promise<void> {
  if (!timingSafeEqual(digest(request.headers.authorization ?? ""), expected)) {
    throw new Refusal(401, 516, "AUTHENTICATION_FAILED", "Authentication failed");
  }
  const url = new URL(request.url ?? "/", "http://localhost");
  if (request.method === "GET" && url.pathname === "/ping") {
    response.end("Ok.\n");
    return;
  }
  if (url.pathname !== "/") throw new Refusal(404, 115, "UNKNOWN_SETTING", "There is nothing at this path");
  if (request.method !== "POST" && request.method !== "GET") {
    throw new Refusal(405, 36, "BAD_ARGUMENTS", "Only GET and POST are served");
  }
  if (request.headers["content-encoding"] !== undefined) {
    throw new Refusal(415, 36, "BAD_ARGUMENTS", "Compressed requests are not served");
  }
  const { query, params, settings, defaultFormat } = readSearch(url.searchParams);
  const insertion = query === undefined ? undefined : insertPattern.exec(query);
  if (query !== undefined && insertion) {
    const body = await readBody(request, maxInsertBytes);
    if (body.length === 0) throw new Refusal(400, 27, "CANNOT_PARSE_INPUT_ASSERTION_FAILED", "The insert has no rows");
    assertRows(body);
    const { rows, bytes } = await engine.insert(readInsertion(insertion, settings, body));
    response.setHeader("X-ClickHouse-Summary", JSON.stringify({ written_rows: `${rows}`, written_bytes: `${bytes}` }));
    response.end();
    return;
  }
  const sql = [query, (await readBody(request, maxStatementBytes)).toString("utf8")].filter(Boolean).join("\n");
  if (sql.trim() === "") throw new Refusal(400, 62, "SYNTAX_ERROR", "Empty query");
  const result = await engine.execute({ sql, params, settings, defaultFormat });
  response.setHeader("Content-Type", "text/plain; charset=UTF-8");
  response.end(result);
}

function fail(request: IncomingMessage, response: ServerResponse, error: unknown): void {
  request.resume();
  if (response.headersSent) {
    response.destroy();
    return;
  }
  const refusal =
    error instanceof EngineBusy
      ? new Refusal(503, 202, "TOO_MANY_SIMULTANEOUS_QUERIES", "Too many simultaneous queries")
      : error;
  const message = refusal instanceof Error ? refusal.message : "Code: 1001. DB::Exception: unknown. (STD_EXCEPTION)";
  const code = refusal instanceof Refusal ? refusal.code : Number(/^Code: (\d+)/.exec(message)?.[1] ?? 1001);
  response.statusCode = refusal instanceof Refusal ? refusal.status : 500;
  response.setHeader("X-ClickHouse-Exception-Code", String(code));
  // What is left of a refused body is not worth reading.
  response.setHeader("Connection", "close");
  response.end(`${message}\n`);
}

const identifier = /^[A-Za-z_][A-Za-z0-9_]{0,127}$/;
const insertPattern =
  /^\s*INSERT\s+INTO\s+([A-Za-z0-9_]+(?:\.[A-Za-z0-9_]+)?)\s*(?:\(([A-Za-z0-9_,\s]+)\)\s*)?FORMAT\s+JSONEachRow\s*$/i;

// Settings of the HTTP layer itself, which the engine does not know: answers are always whole and uncompressed.
const httpSettings = new Set(["wait_end_of_query", "send_progress_in_http_headers", "enable_http_compression"]);

function readSearch(search: URLSearchParams): Omit<Statement, "sql"> & { query: string | undefined } {
  const params: Record<string, string | null> = {};
  const settings: Record<string, string> = {};
  for (const [name, value] of search) {
    if (name === "query" || name === "query_id" || name === "default_format" || httpSettings.has(name)) continue;
    if (!identifier.test(name)) throw new Refusal(400, 115, "UNKNOWN_SETTING", "A setting's name is malformed");
    if (name === "session_id" || name === "role" || name === "database") {
      throw new Refusal(400, 36, "BAD_ARGUMENTS", `${name} is not served`);
    }
    if (name.startsWith("param_")) params[name.slice("param_".length)] = unescapeParam(value);
    else settings[name] = value;
  }
  return {
    query: search.get("query") ?? undefined,
    params,
    settings,
    defaultFormat: search.get("default_format") ?? "TabSeparated",
  };
}

const escapes: Readonly<Record<string, string>> = { t: "\t", n: "\n", r: "\r", b: "\b", f: "\f", 0: "\0" };

/** A parameter travels in ClickHouse's escaped text form; chDB escapes again what it is given. */
function unescapeParam(text: string): string | null {
  if (text === "\\N") return null;
  return text.replace(/\\(.)/gs, (_, character: string) => escapes[character] ?? character);
}

function readInsertion(match: RegExpExecArray, settings: Record<string, string>, body: Buffer): Insertion {
  return {
    table: match[1] ?? "",
    columns: match[2]?.split(",").map((name) => name.trim()),
    format: "JSONEachRow",
    settings,
    body,
  };
}

/** The engine reads what follows a blank line of data as further statements, so each line must be one JSON object. */
function assertRows(body: Buffer): void {
  const lines = body.toString("utf8").split("\n");
  if (lines.at(-1) === "") lines.pop();
  for (const line of lines) {
    let row: unknown;
    try {
      row = JSON.parse(line);
    } catch {
      row = undefined;
    }
    if (typeof row !== "object" || row === null || Array.isArray(row)) {
      throw new Refusal(400, 117, "INCORRECT_DATA", "Each line of the body must be one JSON object");
    }
  }
}

async function readBody(request: IncomingMessage, limit: number): Promise<Buffer> {
  const chunks: Buffer[] = [];
  let length = 0;
  for await (const chunk of request as AsyncIterable<Buffer>) {
    length += chunk.length;
    if (length > limit) throw new Refusal(413, 117, "INCORRECT_DATA", `The body exceeds ${limit} bytes`);
    chunks.push(chunk);
  }
  return Buffer.concat(chunks, length);
}

function digest(text: string): Buffer {
  return createHash("sha256").update(text).digest();
}
