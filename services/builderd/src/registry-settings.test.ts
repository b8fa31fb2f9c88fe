import assert from "node:assert/strict";
import { mkdtemp, rm, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { test } from "node:test";
import { Settings } from "@unkey/daemon";
import { readRegistrySettings } from "./registry-settings.ts";

function read(env: Readonly<Record<string, string>>) {
  const settings = new Settings(
    "builderd",
    Object.fromEntries(Object.entries(env).map(([name, value]) => [`UNKEY_BUILDERD_${name}`, value])),
  );
  const found = readRegistrySettings(settings);
  settings.done();
  return found;
}

test("mirrors are kept in order, by registry, with their prefix and whether they resolve tags", () => {
  const { mirrors } = read({
    REGISTRY_MIRRORS: "docker.io=near.example:5000/hub, docker.io=[::1]:5000, r.example=near.example:5000",
    REGISTRY_TAG_MIRRORS: "[::1]:5000",
  });
  assert.deepEqual(
    [...mirrors],
    [
      [
        "docker.io",
        [
          { host: "near.example:5000", prefix: "hub/", resolvesTags: false },
          { host: "[::1]:5000", prefix: "", resolvesTags: true },
        ],
      ],
      ["r.example", [{ host: "near.example:5000", prefix: "", resolvesTags: false }]],
    ],
  );
});

test("without settings there is nothing special", () => {
  assert.deepEqual(read({}), {
    mirrors: new Map(),
    caCertificates: [],
    credentialFile: undefined,
  });
});

test("mistakes are told", async (context) => {
  const directory = await mkdtemp(join(tmpdir(), "registry-settings-"));
  context.after(() => rm(directory, { recursive: true, force: true }));
  const file = join(directory, "ca.pem");
  await writeFile(file, "no certificate");
  assert.throws(() => read({ REGISTRY_MIRRORS: "near.example" }), /"near\.example" must match/);
  assert.throws(() => read({ REGISTRY_TAG_MIRRORS: "x.example" }), /x\.example is not among/);
  assert.throws(() => read({ REGISTRY_CA_FILE: file }), /no certificate in PEM/);
  assert.throws(() => read({ REGISTRY_CA_FILE: join(directory, "none") }), /ENOENT/);
});
