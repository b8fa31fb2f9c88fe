import {
  createFileRegistry,
  type DescEnum,
  type DescField,
  type DescMessage,
  type DescMethod,
  fromBinary,
  getOption,
  hasOption,
  ScalarType,
} from "@bufbuild/protobuf";
import { FileDescriptorSetSchema } from "@bufbuild/protobuf/wkt";
import { getComments } from "@bufbuild/protoplugin";
import { type FieldRules, field as fieldRules } from "@bufbuild/protovalidate/gen/buf/validate/validate_pb.js";
import { type Rest, rest, scope } from "@unkey/api/options";

type Json = string | number | boolean | null | Json[] | { [key: string]: Json };
type JsonObject = { [key: string]: Json };

/**
 * The OpenAPI 3.1 document of one service (https://spec.openapis.org/oas/v3.1.0): paths from the `rest` option of its methods,
 * schemas from its messages in the JSON mapping of protobuf (https://protobuf.dev/programming-guides/json/), limits from the
 * validation rules, descriptions from the comments. `image` is a serialized FileDescriptorSet with source info.
 */
export function openApiDocument(image: Uint8Array, serviceName: string, version: string): JsonObject {
  const registry = createFileRegistry(fromBinary(FileDescriptorSetSchema, image));
  const service = registry.getService(serviceName);
  if (!service) throw new Error(`${serviceName} is not in the image`);
  const schemas = new Schemas();
  const paths: { [path: string]: JsonObject } = {};
  for (const method of service.methods) {
    if (!hasOption(method, rest)) throw new Error(`${method.name} has no rest option`);
    const form = getOption(method, rest);
    for (const path of [form.path, ...form.aliases]) {
      paths[path] = { ...paths[path], [form.verb.toLowerCase()]: operation(method, form, path, schemas) };
    }
  }
  return {
    openapi: "3.1.0",
    info: {
      title: "Unkey Deploy",
      version,
      description: comment(service),
      license: { name: "Apache-2.0", identifier: "Apache-2.0" },
    },
    security: [{ apiKey: [] }],
    paths,
    components: {
      securitySchemes: { apiKey: { type: "http", scheme: "bearer", description: "An API key." } },
      schemas: { Problem: problemSchema, ...schemas.build() },
    },
  };
}

/** Errors over REST: https://www.rfc-editor.org/rfc/rfc9457. */
const problemSchema: JsonObject = {
  type: "object",
  description: "Why a request failed.",
  required: ["type", "title", "status", "detail", "reason", "nextStep", "requestId"],
  properties: {
    type: { type: "string", description: "URN of the reason." },
    title: { type: "string", description: "The reason in words." },
    status: { type: "integer", description: "HTTP status." },
    detail: { type: "string", description: "What happened, one sentence." },
    reason: { type: "string", description: "Stable name of the condition in the error catalogue." },
    nextStep: { type: "string", description: "What to do now." },
    requestId: { type: "string", description: "Finds the request in the logs." },
  },
};

function operation(method: DescMethod, form: Rest, path: string, schemas: Schemas): JsonObject {
  const inPath = new Set([...path.matchAll(/\{(\w+)\}/g)].map((match) => match[1]));
  const parameters: Json[] = [];
  const bodyFields: DescField[] = [];
  const hasBody = form.verb !== "GET" && form.verb !== "DELETE";
  for (const field of form.rawBody ? [] : method.input.fields) {
    const place = inPath.has(field.name) ? "path" : hasBody ? undefined : "query";
    if (!place) bodyFields.push(field);
    else {
      parameters.push({
        name: place === "path" ? field.name : field.jsonName,
        in: place,
        required: place === "path",
        description: comment(field),
        schema: schemas.ofField(field),
      });
    }
  }
  if (method.name === "CreateDeployment") {
    parameters.push({
      name: "Idempotency-Key",
      in: "header",
      required: false,
      description: "The same key with the same body returns the first deployment; with another body it fails with 422.",
      schema: { type: "string", maxLength: 128 },
    });
  }
  const success: JsonObject = {
    description: form.rawAnswer === "" ? comment(method.output) : "The document.",
    content: contentOf(method, form, schemas),
  };
  const result: JsonObject = {
    operationId: method.localName,
    summary: comment(method).split(/(?<=[.;])\s/)[0] ?? "",
    description: `${comment(method)} Needs the scope ${getOption(method, scope)}.`,
    parameters,
    responses: {
      [String(form.successStatus || 200)]: success,
      default: {
        description: "The request failed.",
        content: { "application/problem+json": { schema: { $ref: "#/components/schemas/Problem" } } },
      },
    },
  };
  if (form.rawBody) {
    result["requestBody"] = { required: true, content: { "application/octet-stream": { schema: {} } } };
  } else if (bodyFields.length > 0) {
    result["requestBody"] = {
      required: true,
      content: { "application/json": { schema: schemas.ofFields(bodyFields, comment(method.input)) } },
    };
  }
  return result;
}

function contentOf(method: DescMethod, form: Rest, schemas: Schemas): JsonObject {
  if (form.rawAnswer !== "") return { [form.rawAnswer]: { schema: {} } };
  const type = method.methodKind === "server_streaming" ? "application/x-ndjson" : "application/json";
  return { [type]: { schema: { $ref: schemas.ref(method.output) } } };
}

/** Collects the schema of every message and enum that is referred to, once. */
class Schemas {
  readonly #wanted = new Map<string, DescMessage | DescEnum>();

  ref(desc: DescMessage | DescEnum): string {
    this.#wanted.set(desc.typeName, desc);
    return `#/components/schemas/${schemaName(desc)}`;
  }

  build(): JsonObject {
    const built = new Map<string, JsonObject>();
    for (let grew = true; grew; ) {
      grew = false;
      for (const desc of this.#wanted.values()) {
        if (built.has(schemaName(desc))) continue;
        grew = true;
        built.set(
          schemaName(desc),
          desc.kind === "enum"
            ? { type: "string", description: comment(desc), enum: desc.values.map((value) => value.name) }
            : this.ofFields(desc.fields, comment(desc)),
        );
      }
    }
    return Object.fromEntries([...built].sort(([a], [b]) => (a < b ? -1 : 1)));
  }

  ofFields(fields: readonly DescField[], description: string): JsonObject {
    const properties: JsonObject = {};
    for (const field of fields) {
      const schema = this.ofField(field);
      // JSON Schema 2020-12 allows siblings of $ref.
      properties[field.jsonName] = { ...schema, description: comment(field) };
    }
    return { type: "object", description, properties };
  }

  ofField(field: DescField): JsonObject {
    const rules = hasOption(field, fieldRules) ? getOption(field, fieldRules) : undefined;
    switch (field.fieldKind) {
      case "message":
        return { $ref: this.ref(field.message) };
      case "enum":
        return { $ref: this.ref(field.enum) };
      case "scalar":
        return scalarSchema(field.scalar, rules);
      case "map":
        return {
          type: "object",
          additionalProperties: field.mapKind === "scalar" ? scalarSchema(field.scalar, undefined) : {},
        };
      case "list": {
        const items: JsonObject =
          field.listKind === "scalar"
            ? scalarSchema(field.scalar, undefined)
            : { $ref: this.ref(field.listKind === "message" ? field.message : field.enum) };
        const limits = rules?.type.case === "repeated" ? rules.type.value : undefined;
        return {
          type: "array",
          items,
          ...(limits?.minItems ? { minItems: Number(limits.minItems) } : {}),
          ...(limits?.maxItems ? { maxItems: Number(limits.maxItems) } : {}),
        };
      }
    }
  }
}

function scalarSchema(scalar: ScalarType, rules: FieldRules | undefined): JsonObject {
  const rule = rules?.type;
  switch (scalar) {
    case ScalarType.BOOL:
      return { type: "boolean" };
    case ScalarType.BYTES:
      return { type: "string", contentEncoding: "base64" };
    case ScalarType.STRING:
      if (rule?.case !== "string") return { type: "string" };
      return {
        type: "string",
        ...(rule.value.minLen ? { minLength: Number(rule.value.minLen) } : {}),
        ...(rule.value.maxLen ? { maxLength: Number(rule.value.maxLen) } : {}),
        ...(rule.value.pattern ? { pattern: rule.value.pattern } : {}),
      };
    // 64-bit integers are decimal strings in protobuf's JSON.
    case ScalarType.INT64:
      return { type: "string", format: "int64" };
    case ScalarType.UINT64:
      return { type: "string", format: "uint64" };
    case ScalarType.UINT32: {
      const value = rule?.case === "uint32" ? rule.value : undefined;
      return {
        type: "integer",
        minimum: value?.greaterThan.case === "gte" ? value.greaterThan.value : 0,
        ...(value?.lessThan.case === "lte" ? { maximum: value.lessThan.value } : {}),
      };
    }
    case ScalarType.DOUBLE:
      return { type: "number" };
    default:
      throw new Error(`scalar ${ScalarType[scalar]} has no place in the public API yet`);
  }
}

/** Metal's Vm is MetalVm, so that messages of several packages do not collide. */
function schemaName(desc: DescMessage | DescEnum): string {
  const [, area = "", , name = ""] = /^unkey\.(\w+)\.(v\d+)\.(.+)$/.exec(desc.typeName) ?? [];
  const prefix = area === "gateway" ? "" : area.charAt(0).toUpperCase() + area.slice(1);
  return prefix + name.replaceAll(".", "");
}

function comment(desc: Parameters<typeof getComments>[0]): string {
  return (getComments(desc).leading ?? "").replaceAll(/\s+/g, " ").trim();
}
