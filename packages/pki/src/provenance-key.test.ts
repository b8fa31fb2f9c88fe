import assert from "node:assert/strict";
import { createPrivateKey, createPublicKey } from "node:crypto";
import { chmodSync, mkdtempSync, readFileSync, renameSync, rmSync, statSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { dirname, join } from "node:path";
import { type TestContext, test } from "node:test";
import { isServiceError } from "@unkey/base";
import { ensureProvenanceKey } from "./provenance-key.ts";

function places(context: TestContext) {
  const root = mkdtempSync(join(tmpdir(), "pki-"));
  context.after(() => rmSync(root, { recursive: true, force: true }));
  return { keyFile: join(root, "provenance/signing.key"), trustedFile: join(root, "provenance/trusted.pem") };
}

function publicOf(keyFile: string): string {
  return createPublicKey(createPrivateKey(readFileSync(keyFile))).export({ type: "spki", format: "pem" });
}

test("the key is made once, private, and its public half is trusted", (context) => {
  const files = places(context);
  ensureProvenanceKey(files);
  const key = readFileSync(files.keyFile, "utf8");
  assert.equal(statSync(files.keyFile).mode & 0o777, 0o600);
  assert.equal(statSync(dirname(files.keyFile)).mode & 0o777, 0o700);
  assert.equal(readFileSync(files.trustedFile, "utf8"), publicOf(files.keyFile));
  ensureProvenanceKey(files);
  assert.equal(readFileSync(files.keyFile, "utf8"), key);
  assert.equal(readFileSync(files.trustedFile, "utf8"), publicOf(files.keyFile));
});

test("a crash between the two files is made good; a key that is moved away is followed by another, and both are trusted", (context) => {
  const files = places(context);
  ensureProvenanceKey(files);
  rmSync(files.trustedFile);
  ensureProvenanceKey(files);
  const first = publicOf(files.keyFile);
  assert.equal(readFileSync(files.trustedFile, "utf8"), first);
  renameSync(files.keyFile, `${files.keyFile}.old`);
  ensureProvenanceKey(files);
  const second = publicOf(files.keyFile);
  assert.notEqual(second, first);
  assert.equal(readFileSync(files.trustedFile, "utf8"), `${first}${second}`);
});

test("a key that others can read, or that is none, is refused without a word of it", (context) => {
  const files = places(context);
  ensureProvenanceKey(files);
  chmodSync(files.keyFile, 0o640);
  const refused = (pattern: RegExp) => (error: unknown) =>
    isServiceError(error) && error.reason === "AUTHORITY_UNUSABLE" && pattern.test(error.message);
  assert.throws(() => ensureProvenanceKey(files), refused(/can be read by others; run chmod 600/));
  writeFileSync(files.keyFile, "s3cret");
  chmodSync(files.keyFile, 0o600);
  assert.throws(
    () => ensureProvenanceKey(files),
    (error) => refused(/is not a private key/)(error) && !String(error).includes("s3cret"),
  );
});
