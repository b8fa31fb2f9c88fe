import {
  type DescField,
  type DescMessage,
  fromJson,
  type JsonValue,
  type Message,
  ScalarType,
} from "@bufbuild/protobuf";
import { ServiceError } from "@unkey/base";
import { explainJson, explainJsonSyntax } from "@unkey/rpc";

type JsonObject = { [key: string]: JsonValue };

/** What a REST request says, before it is a message. */
export interface RestInput {
  /** Values of the path's variables, by the field's name in the contract. */
  readonly path: ReadonlyMap<string, string>;
  readonly query: URLSearchParams;
  /** The parsed body of verbs that have one. */
  readonly body: JsonValue | undefined;
}

/**
 * Builds the request message in the JSON mapping of protobuf (https://protobuf.dev/programming-guides/json/): path
 * variables by their names, then the query or the body. A field may come from one place only. Throws MALFORMED_MESSAGE
 * naming the field; its message never repeats a value, because a body may hold secrets.
 */
export function messageOf(schema: DescMessage, input: RestInput): Message {
  const json: JsonObject = input.body === undefined ? queryJson(schema, input) : bodyJson(schema, input);
  for (const [name, value] of input.path) {
    const field = schema.fields.find((each) => each.name === name);
    if (!field) throw new Error(`${schema.typeName} has no field ${name}, which its path names`);
    json[field.jsonName] = scalarJson(field, value);
  }
  return decode(schema, json);
}

/** Decodes `json`, with errors that name the field but not its value. */
function decode(schema: DescMessage, json: JsonObject): Message {
  try {
    return fromJson(schema, json);
  } catch (cause) {
    throw malformed(explainJson(cause instanceof Error ? cause.message : ""));
  }
}

function bodyJson(schema: DescMessage, { path, query, body }: RestInput): JsonObject {
  for (const name of query.keys()) throw malformed(`the query parameter ${shown(name)} is not part of this method`);
  if (typeof body !== "object" || body === null || Array.isArray(body))
    throw malformed("the body is not a JSON object");
  const json: JsonObject = { ...body };
  for (const name of path.keys()) {
    const field = schema.fields.find((each) => each.name === name);
    if (field && (Object.hasOwn(json, field.jsonName) || Object.hasOwn(json, name))) {
      throw malformed(`the field ${field.jsonName} is given by the path and must not stand in the body`);
    }
  }
  return json;
}

function queryJson(schema: DescMessage, { path, query }: RestInput): JsonObject {
  const json: JsonObject = {};
  for (const name of new Set(query.keys())) {
    const field = schema.fields.find((each) => each.jsonName === name || each.name === name);
    if (!field || path.has(field.name)) throw malformed(`the query parameter ${shown(name)} is unknown`);
    if (Object.hasOwn(json, field.jsonName)) throw malformed(`the query parameter ${field.jsonName} is given twice`);
    const values = query.getAll(name);
    if (field.fieldKind === "list" && field.listKind !== "message") {
      json[field.jsonName] = values.map((value) => scalarJson(field, value));
      continue;
    }
    const [value, ...more] = values;
    if (more.length > 0) throw malformed(`the query parameter ${field.jsonName} is given twice`);
    if (value !== undefined) json[field.jsonName] = scalarJson(field, value);
  }
  return json;
}

/** Text from a URL as the JSON value that the field expects; numbers may be strings in protobuf's JSON. */
function scalarJson(field: DescField, text: string): JsonValue {
  if (field.enum) return /^\d{1,9}$/.test(text) ? Number(text) : text;
  if (field.scalar === undefined) throw malformed(`the field ${field.jsonName} cannot be given in a URL`);
  if (field.scalar !== ScalarType.BOOL) return text;
  if (text !== "true" && text !== "false") throw malformed(`${field.jsonName}: expected true or false`);
  return text === "true";
}

/** Parses a JSON body. Throws MALFORMED_MESSAGE with the position, never with the text around it. */
export function parseJson(bytes: Uint8Array): JsonValue {
  let text: string;
  try {
    text = new TextDecoder("utf-8", { fatal: true }).decode(bytes);
  } catch {
    throw malformed("the body is not UTF-8");
  }
  if (text.trim() === "") return {};
  try {
    return JSON.parse(text) as JsonValue;
  } catch (cause) {
    throw malformed(explainJsonSyntax(cause instanceof Error ? cause.message : "") ?? "the body is not JSON");
  }
}

function shown(name: string): string {
  return JSON.stringify(name.slice(0, 64));
}

function malformed(message: string): ServiceError {
  return new ServiceError("MALFORMED_MESSAGE", message);
}
