/**
 * Regenerates what is derived from proto/: messages and clients in packages/api/src/gen. With --check it generates beside and
 * fails when the committed output differs.
 */
import { execFileSync } from "node:child_process";
import { cpSync, existsSync, mkdirSync, rmSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { file_buf_validate_validate } from "@bufbuild/protovalidate/gen/buf/validate/validate_pb.js";
import { printProto } from "./print-proto.ts";

const root = join(import.meta.dirname, "..");
const committed = join(root, "packages/api/src/gen");
const cache = join(root, "node_modules/.cache");
const check = process.argv.includes("--check");
const output = check ? join(cache, "gen-check") : committed;

// The package @bufbuild/protovalidate ships the descriptor of validate.proto but not its source, which buf needs to import.
mkdirSync(join(cache, "proto/buf/validate"), { recursive: true });
writeFileSync(join(cache, "proto/buf/validate/validate.proto"), printProto(file_buf_validate_validate));

const fresh = join(cache, "gen");
rmSync(fresh, { recursive: true, force: true });
run("buf", ["generate", "--output", fresh]);
rmSync(output, { recursive: true, force: true });
cpSync(join(fresh, "packages/api/src/gen"), output, { recursive: true });

if (check) {
  try {
    run("diff", ["-r", committed, output]);
  } catch {
    console.error("packages/api/src/gen is stale: run `npm run generate` and commit the result");
    process.exit(1);
  } finally {
    rmSync(output, { recursive: true, force: true });
  }
}

function run(command: string, args: string[]): void {
  const local = join(root, "node_modules/.bin", command);
  execFileSync(existsSync(local) ? local : command, args, { cwd: root, stdio: "inherit" });
}
