import assert from "node:assert/strict";
import { test } from "node:test";
import { compareTemplates, matchPath, nearTemplates, parseTemplate } from "./rest-path.ts";

const templates = ["/v1/vms/{vm_id}", "/v1/vms", "/v1/vms/watch", "/v1/apps/{app}/secrets/{name}", "/deploy"].map(
  parseTemplate,
);

test("a path fits a template segment by segment, with decoded values", () => {
  const secrets = parseTemplate("/v1/apps/{app}/secrets/{name}");
  assert.deepEqual(
    [...(matchPath(secrets, "/v1/apps/a%20b/secrets/N") ?? [])],
    [
      ["app", "a b"],
      ["name", "N"],
    ],
  );
  for (const path of [
    "/v1/apps/a/secrets",
    "/v1/apps//secrets/x",
    "/v1/apps/a/secrets/x/",
    "/v1/apps/%zz/secrets/x",
    "v1/apps/a/secrets/x",
    "",
  ]) {
    assert.equal(matchPath(secrets, path), undefined, path);
  }
  assert.equal(matchPath(secrets, "/v1/apps/a%2Fb/secrets/x")?.get("app"), "a/b");
});

test("a literal is preferred to a variable", () => {
  const ordered = templates.toSorted(compareTemplates);
  assert.equal(ordered.find((template) => matchPath(template, "/v1/vms/watch"))?.text, "/v1/vms/watch");
  assert.equal(ordered.find((template) => matchPath(template, "/v1/vms/vm_1"))?.text, "/v1/vms/{vm_id}");
});

test("a mistyped path is answered with what was meant", () => {
  assert.equal(nearTemplates(templates, "/v1/vm", 3)[0], "/v1/vms");
  assert.equal(nearTemplates(templates, "/deplyo", 3)[0], "/deploy");
  assert.deepEqual(nearTemplates(templates, "/this/is/something/else/entirely/and/long", 3), []);
  assert.ok(nearTemplates(templates, `/${"x/".repeat(5000)}`, 3).length <= 3);
});
