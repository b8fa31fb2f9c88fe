import assert from "node:assert/strict";
import { test } from "node:test";
import { fromJsonString } from "@bufbuild/protobuf";
import { Code, ConnectError, createConnectRouter } from "@connectrpc/connect";
import type { UniversalServerResponse } from "@connectrpc/connect/protocol";
import { findTrailerError } from "@connectrpc/connect/protocol-grpc";
import { trailerParse } from "@connectrpc/connect/protocol-grpc-web";
import { AssetService, UploadHeaderSchema } from "@unkey/api/asset";
import { ErrorInfoSchema } from "@unkey/api/common";
import { toConnectError, toServiceError } from "./errors.ts";
import { completeError } from "./http-answer.ts";
import { explainJson, explainJsonSyntax, explainMalformed } from "./malformed.ts";

test("what is wrong with a JSON body is told without quoting it", () => {
  const cases: [string, RegExp][] = [
    ['{"name": geheim}', /^the body is not JSON$/],
    [`{"name": "${"x".repeat(80)}", "digest": geheim, "${"y".repeat(80)}": 1}`, /^the body is not JSON$/],
    ['{"name": "geheim",}', /^the body is not JSON at byte 18$/],
    ['{"name": "geheim', /^the body is not JSON at byte 16$/],
    ['{"name": ', /^the body ends before its JSON does$/],
    ['{"name": 4711}', /^name: expected string$/],
    ['{"labels": {"a": 4711}}', /^labels: expected string$/],
    ['{"sizeBytes": "geheim"}', /^size_bytes: expected bigint \(uint64\), out of range$/],
    ['{"sizeBytes": -4711}', /^size_bytes: expected bigint \(uint64\), out of range$/],
    ['{"kind": "GEHEIM"}', /^the value is none of AssetKind's names$/],
    ['{"nonsense": "geheim"}', /^the field "nonsense" is unknown in UploadHeader$/],
    ['"geheim"', /^the body does not fit the method's message$/],
  ];
  for (const [text, expected] of cases) {
    let words = "";
    try {
      fromJsonString(UploadHeaderSchema, text);
    } catch (error) {
      words = (error as Error).message;
    }
    assert.notEqual(words, "", text);
    assert.match(explainJson(words), expected, words);
    assert.doesNotMatch(explainMalformed(words), /geheim|4711/i, words);
  }
  assert.equal(explainJsonSyntax("something else"), undefined);
});

test("malformed protobuf gets code, reason and next step over Connect, gRPC and gRPC-Web alike", async () => {
  const error = (status: number, header: Headers, trailer: Headers, bytes: Buffer) => {
    if (header.get("content-type")?.startsWith("application/grpc-web")) {
      assert.equal(bytes[0], 0x80);
      assert.equal(bytes.readUInt32BE(1), bytes.length - 5);
      return findTrailerError(trailerParse(bytes.subarray(5)));
    }
    if (status === 200) return findTrailerError(trailer);
    const { code, message, details } = JSON.parse(bytes.toString()) as {
      code: string;
      message: string;
      details: { type: string; value: string }[];
    };
    assert.equal(code, "invalid_argument");
    const found = new ConnectError(message, Code.InvalidArgument);
    found.details = details.map(({ type, value }) => ({ type, value: Buffer.from(value, "base64") }));
    return found;
  };
  const junk = Buffer.from([0xff, 0xff, 0xff, 0xff]);
  const envelope = Buffer.concat([Buffer.from([0, 0, 0, 0, junk.length]), junk]);
  for (const [type, body] of [
    ["application/proto", junk],
    ["application/grpc", envelope],
    ["application/grpc", envelope.subarray(0, 7)],
    ["application/grpc-web+proto", envelope],
  ] as const) {
    const answer = await answerTo(type, body);
    const chunks: Uint8Array[] = [];
    for await (const chunk of answer.body ?? []) chunks.push(chunk);
    const found = error(answer.status, new Headers(answer.header), new Headers(answer.trailer), Buffer.concat(chunks));
    assert.ok(found, type);
    assert.equal(found.code, Code.InvalidArgument, type);
    const [info] = found.findDetails(ErrorInfoSchema);
    assert.equal(info?.reason, "MALFORMED_MESSAGE", type);
    assert.notEqual(info?.nextStep, "", type);
  }
});

test("an answer over gRPC that is no error passes unchanged", async () => {
  for (const type of ["application/grpc", "application/grpc-web+proto"]) {
    const { status, body, trailer } = await answerTo(type, Buffer.alloc(5));
    const chunks: Uint8Array[] = [];
    for await (const chunk of body ?? []) chunks.push(chunk);
    assert.equal(status, 200);
    const ended =
      type === "application/grpc" ? new Headers(trailer) : trailerParse(chunks.at(-1)?.subarray(5) ?? junkless);
    assert.equal(ended.get("grpc-status"), "0");
  }
});

const junkless = new Uint8Array();

/** What a handler of GetAsset answers to `body`, completed as the servers do it. */
async function answerTo(contentType: string, body: Uint8Array): Promise<UniversalServerResponse> {
  const router = createConnectRouter();
  router.service(AssetService, { getAsset: () => ({ assetId: "asset_1" }) });
  const path = "/unkey.asset.v1.AssetService/GetAsset";
  const handler = router.handlers.find(({ requestPath }) => requestPath === path);
  assert.ok(handler);
  async function* once() {
    yield body;
  }
  const answer = await handler({
    httpVersion: "2.0",
    method: "POST",
    url: `https://localhost${path}`,
    header: new Headers({ "content-type": contentType }),
    body: once(),
    signal: new AbortController().signal,
    contextValues: undefined as never,
  });
  return completeError(answer, (error) => toConnectError(toServiceError(error, undefined, "req")));
}
