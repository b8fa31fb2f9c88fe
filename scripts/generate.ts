/**
 * Regenerates what is derived from proto/: messages and clients in packages/api/src/gen, and the OpenAPI document of the
 * public API. With --check it generates beside and fails when the committed output differs.
 */
import { execFileSync } from "node:child_process";
import { cpSync, existsSync, mkdirSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { file_buf_validate_validate } from "@bufbuild/protovalidate/gen/buf/validate/validate_pb.js";
import manifest from "../package.json" with { type: "json" };
import { openApiDocument } from "./openapi.ts";
import { printProto } from "./print-proto.ts";

const root = join(import.meta.dirname, "..");
const cache = join(root, "node_modules/.cache");
const fresh = join(cache, "generated");
const outputs = ["packages/api/src/gen", "packages/api/openapi.json"];

// The package @bufbuild/protovalidate ships the descriptor of validate.proto but not its source, which buf needs to import.
mkdirSync(join(cache, "proto/buf/validate"), { recursive: true });
writeFileSync(join(cache, "proto/buf/validate/validate.proto"), printProto(file_buf_validate_validate));

rmSync(fresh, { recursive: true, force: true });
run("buf", ["generate", "--output", fresh]);
const image = join(cache, "image.binpb");
run("buf", ["build", "--path", "proto/unkey", "--output", image]);
const document = openApiDocument(readFileSync(image), "unkey.gateway.v1.GatewayService", manifest.version);
writeFileSync(join(fresh, "packages/api/openapi.json"), `${JSON.stringify(document, null, 2)}\n`);

if (process.argv.includes("--check")) {
  try {
    for (const output of outputs) run("diff", ["-r", join(root, output), join(fresh, output)]);
  } catch {
    console.error("packages/api is stale: run `npm run generate` and commit the result");
    process.exit(1);
  }
} else {
  for (const output of outputs) {
    rmSync(join(root, output), { recursive: true, force: true });
    cpSync(join(fresh, output), join(root, output), { recursive: true });
  }
}

function run(command: string, args: string[]): void {
  const local = join(root, "node_modules/.bin", command);
  execFileSync(existsSync(local) ? local : command, args, { cwd: root, stdio: "inherit" });
}
