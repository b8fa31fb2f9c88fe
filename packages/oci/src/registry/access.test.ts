import assert from "node:assert/strict";
import { test } from "node:test";
import { parseImageReference } from "../reference.ts";
import { fails, listen, serve } from "../testing/scripted-registry.ts";
import { checkRegistryAllowed } from "./allow-list.ts";
import { credentialsFor } from "./credentials.ts";
import { RegistryClient } from "./registry-client.ts";

const allowed = (image: string, ...patterns: string[]): boolean => {
  try {
    checkRegistryAllowed(parseImageReference(image), patterns);
    return true;
  } catch (error) {
    fails("REGISTRY_NOT_ALLOWED", /images come from .* here, not from /)(error);
    return false;
  }
};

for (const [image, patterns, expected] of [
  ["debian", [], true],
  ["debian", ["docker.io/library/*"], true],
  ["docker.io/team/app", ["docker.io/library/*"], false],
  ["r.example/a/b/c", ["r.example/*"], false],
  ["r.example/a/b/c", ["r.example/**"], true],
  ["r.example/a/b/c", ["r.example"], true],
  ["r.example:5000/a", ["r.example"], false],
  ["r.example.evil/a", ["r.example"], false],
  ["evil.example/r.example/a", ["r.example/**"], false],
  ["a.r.example/x", ["*.r.example"], true],
  ["r.example/x", ["*.r.example"], false],
  ["r.example/team-a/x", ["r.example/team-*/x"], true],
  ["r.example/team-a/b/x", ["r.example/team-*/x"], false],
  ["r.example/a.b", ["r.example/a?b"], false],
  ["other.example/x", ["r.example", "other.example/x"], true],
] as const) {
  test(`${image} is ${expected ? "allowed" : "refused"} by [${patterns.join(" ")}]`, () => {
    assert.equal(allowed(image, ...patterns), expected);
  });
}

test("a pattern of many stars takes no time", () => {
  assert.equal(allowed(`r.example/${"a".repeat(200)}`, `r.example/${"*a".repeat(60)}b`), false);
});

test("an image that is not allowed is refused before anything is asked", async (context) => {
  const { host, seen } = await listen(context, serve);
  await using client = new RegistryClient({ allowedRegistries: ["docker.io", "r.example/team/*"] });
  assert.throws(
    () => client.image(parseImageReference(`${host}/app:v1`)),
    fails("REGISTRY_NOT_ALLOWED", /come from docker\.io, r\.example\/team\/\* here/),
  );
  assert.deepEqual(seen, []);
});

test("the login of the longest prefix is an image's; no prefix cuts a component, no registry gets another's", () => {
  const login = (username: string) => ({ username, password: "x" });
  const logins = new Map([
    ["r.example", login("registry")],
    ["r.example/team", login("team")],
    ["r.example/team/app", login("app")],
    ["r.example:5000", login("port")],
    ["docker.io/library", login("docker")],
  ]);
  const whose = (image: string) => credentialsFor(parseImageReference(image), logins)?.username;
  assert.deepEqual(
    ["r.example/x", "r.example/team/x", "r.example/team/app:v1", "r.example/team/app/x", "r.example/team2/x"].map(
      whose,
    ),
    ["registry", "team", "app", "app", "registry"],
  );
  assert.deepEqual(
    ["r.example:5000/team/app", "debian", "docker.io/team/x", "sub.r.example/x", "other.example/r.example/team"].map(
      whose,
    ),
    ["port", "docker", undefined, undefined, undefined],
  );
});
