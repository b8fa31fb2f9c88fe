import assert from "node:assert/strict";
import { test } from "node:test";
import { isServiceError, newId } from "@unkey/base";
import type { BuildSource } from "./build.ts";
import {
  type BuildPolicy,
  canonical,
  checkImageAllowed,
  defaultBuildPolicy,
  matchesImage,
  policyDigest,
  signatureRulesFor,
} from "./policy.ts";

const reference = (text: string): BuildSource => ({ kind: "reference", reference: text });
const pushed: BuildSource = { kind: "pushed", repository: "shop/web", digest: `sha256:${"0".repeat(64)}` };
const upload: BuildSource = { kind: "upload", uploadId: newId("upload") };

for (const [pattern, name, matches] of [
  ["**", "ghcr.io/acme/app", true],
  ["**", "upload", true],
  ["ghcr.io/acme/*", "ghcr.io/acme/app", true],
  ["ghcr.io/acme/*", "ghcr.io/acme/team/app", false],
  ["ghcr.io/acme/**", "ghcr.io/acme/team/app", true],
  ["ghcr.io/acme/**", "ghcr.io/acme", false],
  ["ghcr.io/acme/**", "ghcr.io/acme-evil/app", false],
  ["ghcr.io/**", "ghcrXio/app", false],
  ["*.example.com/**", "a.example.com/b", true],
  ["*.example.com/**", "evil.com/a.example.com/b", false],
  ["localhost:5000/*", "localhost:5000/app", true],
  ["[::1]:5000/*", "[::1]:5000/app", true],
  ["app", "docker.io/library/app", false],
  ["r.example/*", "r.example/a/b", false],
  ["r.example:5000/**", "r.example/a", false],
  ["r.example/**", "evil.example/r.example/a", false],
  ["r.example/team-*/x", "r.example/team-a/x", true],
  ["r.example/team-*/x", "r.example/team-a/b/x", false],
  ["r.example/**/x", "r.example/a/b/x", true],
] as const) {
  test(`${pattern} ${matches ? "matches" : "does not match"} ${name}`, () => {
    assert.equal(matchesImage(pattern, name), matches);
  });
}

test("a pattern of many stars takes no time", () => {
  assert.equal(matchesImage(`${"**a".repeat(60)}b`, "a".repeat(255)), false);
  assert.equal(matchesImage(`${"**a".repeat(60)}**`, "a".repeat(255)), true);
});

test("an image is compared by its full name, whatever short form it was asked for in", () => {
  const policy: BuildPolicy = { ...defaultBuildPolicy, images: ["docker.io/library/*", "pushed/**"] };
  for (const allowed of [
    reference("debian:12"),
    reference("index.docker.io/library/debian"),
    reference("registry-1.docker.io:443/library/debian"),
    pushed,
  ]) {
    checkImageAllowed(policy, allowed);
  }
  for (const refused of [reference("ghcr.io/acme/app"), reference("someone/debian"), upload]) {
    assert.throws(
      () => checkImageAllowed(policy, refused),
      (error) => isServiceError(error, "IMAGE_NOT_ALLOWED"),
    );
  }
  // A repository of docker.io cannot be taken for the platform's own registry.
  assert.throws(() => checkImageAllowed({ ...policy, images: ["pushed/**"] }, reference("pushed/web")));
  assert.throws(() => checkImageAllowed({ ...policy, images: [] }, upload), /allows no image, not upload/);
});

test("only the rules that name an image ask something of it", () => {
  const rule = (images: string[]) => ({ images, keys: ["k"], signature: true, attestations: [] });
  const [ours, all] = [rule(["ghcr.io/acme/**"]), rule(["**"])];
  const policy = { ...defaultBuildPolicy, signatures: [ours, all] };
  assert.deepEqual(signatureRulesFor(policy, reference("ghcr.io/acme/app")), [ours, all]);
  assert.deepEqual(signatureRulesFor(policy, upload), [all]);
  assert.deepEqual(signatureRulesFor(defaultBuildPolicy, upload), []);
});

test("a policy has one digest in any order of its keys, and another one after any change", () => {
  const rule = { images: ["**"], keys: ["k"], signature: true, attestations: ["https://slsa.dev/provenance/v1"] };
  const policy: BuildPolicy = { ...defaultBuildPolicy, signatures: [rule] };
  const reversed = Object.fromEntries(Object.entries(policy).toReversed()) as unknown as BuildPolicy;
  assert.equal(policyDigest(reversed), policyDigest(policy));
  assert.match(policyDigest(policy), /^sha256:[0-9a-f]{64}$/);
  const changed: BuildPolicy[] = [
    policy,
    defaultBuildPolicy,
    { ...policy, images: ["upload"] },
    { ...policy, setuid: "strip" },
    { ...policy, limits: { ...policy.limits, fileBytes: 1 } },
    { ...policy, signatures: [{ ...rule, signature: false }] },
    { ...policy, signatures: [{ ...rule, keys: ["k", "l"] }] },
    { ...policy, signatures: [{ ...rule, attestations: [] }] },
  ];
  assert.equal(new Set(changed.map(policyDigest)).size, changed.length);
  assert.equal(canonical({ b: [1, "x"], a: { d: null, c: true } }), '{"a":{"c":true,"d":null},"b":[1,"x"]}');
});
