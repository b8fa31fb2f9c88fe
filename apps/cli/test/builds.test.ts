import assert from "node:assert/strict";
import { mkdir, readdir, readFile, writeFile } from "node:fs/promises";
import { join } from "node:path";
import { test } from "node:test";
import { BuildState } from "@unkey/api/builder";
import type { ErrorReason } from "@unkey/base";
import { assembleImage } from "@unkey/oci";
import { type Run, temporaryFolder, unkey } from "./run.ts";
import { refusal, scriptedGateway } from "./scripted-gateway.ts";

const buildId = "build_01m84mqj5kmqsawmaf22xm7ayb";
const atMs = BigInt(Date.UTC(2026, 0, 2, 3, 4, 5, 678));

test("a build's log goes on behind its last line when the connection is lost, and shows nothing that controls a terminal", async () => {
  await using folder = await temporaryFolder();
  const asked: bigint[] = [];
  await using _gateway = await scriptedGateway(folder.path, {
    streamBuildLogs: async function* ({ afterSequence, follow }) {
      asked.push(afterSequence);
      assert.equal(follow, true);
      for (let sequence = afterSequence + 1n; sequence <= 4n; sequence++) {
        yield { sequence, atMs, text: sequence === 4n ? "\u001b[2Jend" : `line ${sequence}` };
        if (asked.length === 1 && sequence === 2n) throw refusal("SHUTTING_DOWN", "builderd is stopping");
      }
    },
  });
  const { exitCode, out } = await unkey({ home: folder.path }, "build", "logs", "-f", buildId);
  const time = "03:04:05.678";
  assert.deepEqual(
    [exitCode, asked, out],
    [0, [0n, 2n], `${time}  line 1\n${time}  line 2\n${time}  line 3\n${time}  end\n`],
  );
  const json = await unkey({ home: folder.path }, "builds", "logs", buildId, "--follow", "--after", "3", "--json");
  assert.deepEqual(asked.at(-1), 3n);
  assert.equal((JSON.parse(json.out) as { sequence: string }).sequence, "4");
});

test("verify prints the chain link by link, and fails when one is broken", async () => {
  await using folder = await temporaryFolder();
  let holds = true;
  await using _gateway = await scriptedGateway(folder.path, {
    verifyBuild: () => ({
      verified: holds,
      links: [
        { name: "image", holds: true, detail: "made from sha256:aa" },
        { name: "provenance signature", holds, detail: "by a key" },
      ],
    }),
  });
  const verify = (...flags: string[]): Promise<Run> =>
    unkey({ home: folder.path }, "build", "verify", buildId, ...flags);
  const good = await verify();
  assert.deepEqual([good.exitCode, good.err], [0, ""]);
  assert.equal(
    good.out,
    "holds   image                 made from sha256:aa\n" +
      "holds   provenance signature  by a key\n" +
      `${buildId} is verified: every link holds.\n`,
  );
  holds = false;
  const bad = await verify();
  assert.equal(bad.exitCode, 1);
  assert.match(bad.out, /^broken {2}provenance signature {2}by a key$/m);
  assert.match(bad.err, /is not verified: 1 link of 2 broken\nnext:/);
  const json = await verify("--json");
  assert.equal(json.exitCode, 1);
  assert.equal((JSON.parse(json.out) as { verified: boolean }).verified, false);
});

test("cancel says what became of the build, quota what is left of the day", async () => {
  await using folder = await temporaryFolder();
  let state: BuildState = BuildState.CANCELLED;
  await using _gateway = await scriptedGateway(folder.path, {
    cancelBuild: (request) => ({ buildId: request.buildId, state }),
    getBuildQuota: () => ({
      concurrentLimit: 2,
      concurrentUsed: 1,
      dailyLimit: 500,
      dailyUsed: 7,
      dailyBytesLimit: 2n ** 30n,
      dailyBytesUsed: 2n ** 20n,
      dailyMinutesLimit: 600,
      dailyMinutesUsed: 12,
      resetsAtMs: 0n,
    }),
  });
  const cancel = () => unkey({ home: folder.path }, "builds", "cancel", buildId);
  assert.equal((await cancel()).out, `${buildId} is cancelled; nothing of it is left.\n`);
  state = BuildState.COMPLETED;
  assert.equal((await cancel()).out, `${buildId} had ended already: completed.\n`);
  const quota = await unkey({ home: folder.path }, "builds", "quota");
  assert.match(quota.out, /^builds today +7 +500$/m);
  assert.match(quota.out, /^layers fetched today +1 MiB +1 GiB$/m);
  assert.match(quota.out, /^Days are UTC: they begin again in 0 ms\.$/m);
});

test("package list and provenance are printed byte for byte, or into a file", async () => {
  await using folder = await temporaryFolder();
  await mkdir(join(folder.path, "out"));
  const parts = ['{"name":"gr\u00c3\u00bc', '\u00c3\u009fe"}\n'].map((text) => Buffer.from(text, "latin1"));
  const whole = '{"name":"grüße"}\n';
  let fails = false;
  const chunks = async function* (request: { readonly buildId: string }) {
    assert.equal(request.buildId, buildId);
    for (const chunk of parts) {
      yield { chunk };
      if (fails) throw refusal("ASSET_CORRUPT", "the stored bytes are wrong");
    }
  };
  await using _gateway = await scriptedGateway(folder.path, {
    downloadBuildSbom: chunks,
    downloadBuildProvenance: chunks,
  });
  const run = (...argv: string[]): Promise<Run> => unkey({ home: folder.path }, "builds", ...argv);
  const file = join(folder.path, "out", "document.json");
  for (const document of ["sbom", "provenance"]) {
    const printed: Buffer[] = [];
    const { exitCode } = await unkey(
      { home: folder.path, onOutBytes: (bytes) => printed.push(bytes) },
      "builds",
      document,
      buildId,
    );
    assert.equal(exitCode, 0);
    assert.ok(Buffer.concat(printed).equals(Buffer.from(whole)));
    await writeFile(file, "an earlier one, which is longer than the new one");
    assert.deepEqual(await run(document, buildId, "--output", file), { exitCode: 0, out: "", err: "" });
    assert.equal(await readFile(file, "utf8"), whole);
  }
  fails = true;
  const broken = await run("sbom", buildId, "-o", "out/document.json");
  assert.notEqual(broken.exitCode, 0);
  assert.match(broken.err, /^error: the stored bytes are wrong\nnext: /);
  assert.equal(await readFile(file, "utf8"), whole, "the earlier one stays");
  fails = false;
  for (const place of ["missing/x.json", "out"]) {
    const { err, exitCode } = await run("sbom", buildId, "--output", place);
    assert.equal(exitCode, 1);
    assert.match(
      err,
      /^error: --output: .* cannot be written \(E(?:NOENT|ISDIR)\)\nnext: {2}Name a file in a directory/,
    );
  }
  assert.deepEqual(await readdir(join(folder.path, "out")), ["document.json"]);
});

test("a terminal does not obey a document, and an endless one is left", async () => {
  await using folder = await temporaryFolder();
  let rounds = 1;
  await using _gateway = await scriptedGateway(folder.path, {
    downloadBuildSbom: async function* () {
      for (let round = 0; round < rounds; round++) {
        yield { chunk: rounds === 1 ? Buffer.from('{"name":"\u009b2J\u007f"}') : Buffer.alloc(1 << 20, " ") };
      }
    },
  });
  const shown = await unkey({ home: folder.path, live: true }, "builds", "sbom", buildId);
  assert.equal(shown.out, '{"name":"\\u009b2J\\u007f"}\n');
  rounds = 97;
  const endless = await unkey({ home: folder.path }, "builds", "sbom", buildId, "--output", "sbom.json");
  assert.match(endless.err, /^error: the document is longer than 96 MiB\nnext: /);
});

for (const [reason, discards] of [
  ["APP_NAME_TAKEN", true],
  ["DEPENDENCY_UNAVAILABLE", false],
] as const satisfies readonly (readonly [ErrorReason, boolean])[]) {
  test(`a deployment refused with ${reason} ${discards ? "takes its upload back" : "leaves its upload, which may be needed"}`, async () => {
    await using folder = await temporaryFolder();
    const layout = join(folder.path, "my-image");
    await assembleImage({ directory: layout, files: [{ path: "app", content: "x" }], config: { Cmd: ["/app"] } });
    const discarded: string[] = [];
    const names: string[] = [];
    await using _gateway = await scriptedGateway(folder.path, {
      uploadImage: async (requests) => {
        for await (const { name } of requests) if (name !== "") names.push(name);
        return { uploadId: "upload_1" };
      },
      createDeployment: () => {
        throw refusal(reason, "no");
      },
      discardUpload: ({ uploadId }) => {
        discarded.push(uploadId);
        return {};
      },
    });
    const run = await unkey({ home: folder.path }, "deploy", layout, "--app", "web");
    assert.notEqual(run.exitCode, 0);
    assert.match(run.err, /^error: no$/m);
    assert.deepEqual(discarded, discards ? ["upload_1"] : []);
    assert.deepEqual(names, ["my-image"]);
  });
}
