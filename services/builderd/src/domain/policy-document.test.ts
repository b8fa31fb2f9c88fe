import assert from "node:assert/strict";
import { generateKeyPairSync } from "node:crypto";
import { readFile } from "node:fs/promises";
import { test } from "node:test";
import { gib, mib, newId } from "@unkey/base";
import * as fc from "fast-check";
import { defaultBuildPolicy } from "./policy.ts";
import { defaultPolicyDocument, PolicyMistakes, parsePolicyDocument } from "./policy-document.ts";
import { defaultBuildQuota } from "./quota.ts";

const pem = generateKeyPairSync("ec", { namedCurve: "P-256" }).publicKey.export({ type: "spki", format: "pem" });
const secret = generateKeyPairSync("ed25519").privateKey.export({ type: "pkcs8", format: "pem" });
const exchange = generateKeyPairSync("x25519").publicKey.export({ type: "spki", format: "pem" });
const tenantId = newId("tenant");
const rule = { images: ["ghcr.io/acme/**"], keys: [pem], signature: true };

const parse = (document: unknown) => parsePolicyDocument(JSON.stringify(document));

test("an empty document is the defaults", () => {
  assert.deepEqual(parse({}), defaultPolicyDocument);
});

test("a tenant's terms replace the platform's field by field, and those the defaults", () => {
  const { platform, tenants } = parse({
    default: {
      images: ["upload", "ghcr.io/**", "upload"],
      limits: { file: "1GiB", entries: 1000 },
      signatures: [rule],
      quota: { buildsPerDay: 10 },
    },
    tenants: { [tenantId]: { setuid: "strip", limits: { file: 5 * mib }, signatures: [], quota: { bytesPerDay: 0 } } },
  });
  const limits = { ...defaultBuildPolicy.limits, fileBytes: gib, entries: 1000 };
  const signatures = [{ ...rule, attestations: [] }];
  const policy = { images: ["ghcr.io/**", "upload"], setuid: "keep", limits, signatures };
  assert.deepEqual(platform, { policy, quota: { ...defaultBuildQuota, buildsPerDay: 10 } });
  assert.deepEqual(tenants.get(tenantId), {
    policy: { ...policy, setuid: "strip", limits: { ...limits, fileBytes: 5 * mib }, signatures: [] },
    quota: { ...defaultBuildQuota, buildsPerDay: 10, bytesPerDay: 0 },
  });
});

test("a pattern that no image's name matches is a mistake, not a rule that asks for nothing", () => {
  const good = ["**", "*/acme/**", "upload", "pushed/**", "docker.io/**", "docker.io/library/*", "docker.io/*/app"];
  parse({ default: { images: [...good, "localhost/x", "localhost:5000/**", "ghcr.io/app", "registry:443/app"] } });
  const never = ["debian", "library/debian", "docker.io/debian", "docker.io/*", "index.docker.io/**", "ghcr.io:443/**"];
  for (const pattern of [...never, "registry:0443/app", "127.1/app", "uploads"]) {
    const document = { default: { signatures: [{ ...rule, images: [pattern] }] } };
    assert.throws(() => parse(document), /images\[0\]: matches no image/, pattern);
  }
});

for (const [document, mistake] of [
  [[], "the policy: is no object"],
  [{ defaults: {} }, "defaults: is unknown; known here are default, tenants"],
  [{ default: null }, "default: is no object"],
  [
    { default: { image: ["**"] } },
    "default.image: is unknown; known here are images, limits, quota, setuid, signatures",
  ],
  [{ default: { images: "**" } }, "default.images: is no list"],
  [
    { default: { images: ["**", "Ghcr.io/x"] } },
    'default.images[1]: is no pattern of image names such as "ghcr.io/acme/**"',
  ],
  [{ default: { images: [1] } }, "default.images[0]: is no text"],
  [{ default: { images: Array.from({ length: 257 }, () => "a") } }, "default.images: has more than 256 items"],
  [{ default: { setuid: "Keep" } }, "default.setuid: is none of keep, strip, refuse"],
  [
    { default: { limits: { files: 1 } } },
    "default.limits.files: is unknown; known here are compressed, entries, file, uncompressed",
  ],
  [{ default: { limits: { file: "16 GB!" } } }, 'default.limits.file: is no size; write for example "16GiB"'],
  [{ default: { limits: { file: 0 } } }, "default.limits.file: is not between 1024 and 1099511627776 bytes"],
  [{ default: { limits: { entries: 1.5 } } }, "default.limits.entries: is no whole number"],
  [{ default: { quota: { concurrent: 0 } } }, "default.quota.concurrent: is not between 1 and 64"],
  [{ default: { quota: { minutesPerDay: -1 } } }, "default.quota.minutesPerDay: is not between 0 and 1000000"],
  [{ default: { signatures: [{ keys: [pem], signature: true }] } }, "default.signatures[0].images: is missing"],
  [
    { default: { signatures: [{ ...rule, keys: [] }] } },
    "default.signatures[0].keys: names no key: nothing could satisfy the rule",
  ],
  [
    { default: { signatures: [{ ...rule, keys: ["x"] }] } },
    "default.signatures[0].keys[0]: there is no PUBLIC KEY block in PEM",
  ],
  [
    { default: { signatures: [{ ...rule, keys: [secret] }] } },
    "default.signatures[0].keys[0]: block 1 is a PRIVATE KEY, not a PUBLIC KEY",
  ],
  [
    { default: { signatures: [{ ...rule, keys: [exchange] }] } },
    "default.signatures[0].keys[0]: key 1 is of the kind x25519; use Ed25519, ECDSA or RSA",
  ],
  [
    { default: { signatures: [{ ...rule, signature: "yes" }] } },
    "default.signatures[0].signature: is neither true nor false",
  ],
  [
    { default: { signatures: [{ ...rule, signature: false }] } },
    "default.signatures[0].signature: is false and attestations is empty: the rule asks for nothing",
  ],
  [
    { default: { signatures: [{ ...rule, attestations: ["slsa"] }] } },
    "default.signatures[0].attestations[0]: is no predicate type (a URI)",
  ],
  [{ tenants: { acme: {} } }, "tenants.acme: is no tenant's id"],
  [{ tenants: { [tenantId]: { setuid: 1 } } }, `tenants.${tenantId}.setuid: is none of keep, strip, refuse`],
] as const) {
  test(`refused: ${mistake.slice(0, 90)}`, () => {
    assert.throws(
      () => parse(document),
      (error) => error instanceof PolicyMistakes && error.mistakes.includes(mistake),
    );
  });
}

test("all mistakes are told at once", () => {
  assert.throws(
    () => parse({ default: { setuid: 1, limits: { entries: 0 } }, more: 1 }),
    (error) => error instanceof PolicyMistakes && error.mistakes.length === 3,
  );
});

test("text that is no JSON is told as such; whatever JSON holds, the answer is a document or its mistakes", () => {
  assert.throws(() => parsePolicyDocument("{"), /the policy is not JSON/);
  const key = fc.constantFrom(
    "default",
    "tenants",
    tenantId,
    "images",
    "limits",
    "quota",
    "signatures",
    "keys",
    "__proto__",
  );
  const { tree } = fc.letrec((tie) => ({
    tree: fc.oneof({ depthSize: "small" }, fc.jsonValue(), fc.dictionary(key, tie("tree")), fc.array(tie("tree"))),
  }));
  fc.assert(
    fc.property(tree, (document) => {
      try {
        parse(document);
      } catch (error) {
        assert.ok(error instanceof PolicyMistakes, String(error));
      }
    }),
  );
});

test("the example in docs/how-to/build-policy.md is a document", async () => {
  const page = await readFile(new URL("../../../../docs/how-to/build-policy.md", import.meta.url), "utf8");
  const example = /```json\n(.*?)```/s.exec(page)?.[1] ?? assert.fail("there is no example");
  const { platform, tenants } = parsePolicyDocument(example);
  assert.equal(platform.policy.signatures.length, 1);
  assert.deepEqual([...tenants.values()][0]?.quota, { ...platform.quota, buildsPerDay: 1000 });
});
