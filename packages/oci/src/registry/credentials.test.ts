import assert from "node:assert/strict";
import { test } from "node:test";
import { parseImageReference } from "../reference.ts";
import { credentialsFor } from "./credentials.ts";

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
