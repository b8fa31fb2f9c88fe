import assert from "node:assert/strict";
import { suite } from "node:test";
import {
  type Document,
  descriptor,
  digestOf,
  documentOf,
  emptyType,
  fresh,
  type ImageFixture,
  image,
  index,
  ociManifest,
  octets,
  type RegistryApi,
} from "./client.ts";
import { type Case, type ConformanceSubject, created, deleted, pushAll, withSubject } from "./conformance.contract.ts";

/**
 * What the specification's redesigned suite (https://github.com/opencontainers/distribution-spec/tree/main/conformance)
 * asks beyond v1.1.1: every way of sending a blob with right and wrong digests, ranges, and kinds of content.
 */
export function furtherConformance(subject: ConformanceSubject): void {
  withSubject(subject, (api, it) => {
    suite("empty registry", () => emptyRegistry(api, it));
    suite("blobs sha256", () => blobs(api, it));
    suite("range requests", () => ranges(api, it));
    suite("blobs sha512", () => sha512(api, it));
    suite("content", () => content(api, it));
    suite("manifest errors", () => manifestErrors(api, it));
  });
}

const repository = "more/first";
const other = "more/second";

function emptyRegistry(api: () => RegistryApi, it: Case): void {
  it("ping", async () => assert.equal((await api().send("GET", "/v2/")).status, 200));
  it("tag list of an empty repository", async () => {
    const answer = await api().send("GET", "/v2/more/nothing/tags/list");
    assert.equal(answer.status, 404);
    assert.deepEqual(answer.codes(), ["NAME_UNKNOWN"]);
  });
  it("referrers in an empty repository", async () => {
    const answer = await api().send("GET", `/v2/more/nothing/referrers/${digestOf("x")}`);
    assert.equal(answer.status, 200);
    assert.deepEqual((answer.json() as { manifests: unknown[] }).manifests, []);
  });
}

type Send = (api: RegistryApi, bytes: Buffer, digest: string) => Promise<{ readonly status: number }>;

/** Sends all but the last part by PATCH. */
async function chunked(api: RegistryApi, chunks: readonly Buffer[], ranges: boolean): Promise<string> {
  let location = (await api.begin(repository)).header("location");
  let offset = 0;
  for (const chunk of chunks) {
    const range: Record<string, string> = ranges ? { "content-range": `${offset}-${offset + chunk.length - 1}` } : {};
    const answer = await api.send("PATCH", location, { headers: { ...octets, ...range }, body: chunk });
    assert.equal(answer.status, 202, answer.body.toString());
    offset += chunk.length;
    assert.equal(answer.header("range"), `0-${offset - 1}`);
    location = answer.header("location");
  }
  return location;
}

const ways: Readonly<Record<string, Send>> = {
  "post only": (api, body, digest) =>
    api.send("POST", `/v2/${repository}/blobs/uploads/`, { query: { digest }, headers: octets, body }),
  "post+put": (api, body, digest) => api.pushBlob(repository, body, digest),
  chunked: async (api, body, digest) => {
    const location = await chunked(api, [body.subarray(0, 900), body.subarray(900)], true);
    return api.send("PUT", location, { query: { digest }, headers: { "content-length": "0" } });
  },
  "chunked and put chunk": async (api, body, digest) => {
    const location = await chunked(api, [body.subarray(0, 900)], true);
    const headers = { ...octets, "content-range": `900-${body.length - 1}` };
    return api.send("PUT", location, { query: { digest }, headers, body: body.subarray(900) });
  },
  stream: async (api, body, digest) => {
    const location = await chunked(api, [body], false);
    return api.send("PUT", location, { query: { digest }, headers: { "content-length": "0" } });
  },
};

function blobs(api: () => RegistryApi, it: Case): void {
  for (const [way, send] of Object.entries(ways)) {
    it(way, async () => {
      const bytes = fresh(2000);
      assert.equal((await send(api(), bytes, digestOf(bytes))).status, 201);
      const pulled = await api().blob("GET", repository, digestOf(bytes));
      assert.deepEqual(pulled.body, bytes);
      deleted(await api().blob("DELETE", repository, digestOf(bytes)));
      assert.equal((await api().blob("HEAD", repository, digestOf(bytes))).status, 404);
    });
    it(`bad digest ${way}`, async () => {
      const bytes = fresh(2000);
      const claimed = digestOf(fresh(10));
      assert.equal((await send(api(), bytes, claimed)).status, 400);
      for (const digest of [claimed, digestOf(bytes)]) {
        assert.equal((await api().blob("GET", repository, digest)).status, 404);
      }
    });
  }
  it("chunked out of order", async () => {
    const begun = await api().begin(repository);
    const headers = { ...octets, "content-range": "100-199" };
    const answer = await api().send("PATCH", begun.header("location"), { headers, body: fresh(100) });
    assert.equal(answer.status, 416);
  });
  it("put chunk out of order", async () => {
    const bytes = fresh(1000);
    const location = await chunked(api(), [bytes.subarray(0, 300)], true);
    const headers = { ...octets, "content-range": "500-999" };
    const query = { digest: digestOf(bytes) };
    const answer = await api().send("PUT", location, { query, headers, body: bytes.subarray(500) });
    assert.equal(answer.status, 416);
    const status = await api().send("GET", location);
    assert.equal(status.header("range"), "0-299");
    const right = { ...octets, "content-range": "300-999" };
    created(await api().send("PUT", location, { query, headers: right, body: bytes.subarray(300) }));
  });
  it("cancel", async () => {
    const location = await chunked(api(), [fresh(100)], true);
    assert.equal((await api().send("DELETE", location)).status, 204);
    assert.equal((await api().send("GET", location)).status, 404);
  });
  it("mount", async () => {
    const bytes = fresh(100);
    created(await api().pushBlob(repository, bytes));
    created(await api().begin(other, { mount: digestOf(bytes), from: repository }));
    assert.deepEqual((await api().blob("GET", other, digestOf(bytes))).body, bytes);
    deleted(await api().blob("DELETE", repository, digestOf(bytes)));
    assert.deepEqual((await api().blob("GET", other, digestOf(bytes))).body, bytes, "it stays where it is mounted");
    deleted(await api().blob("DELETE", other, digestOf(bytes)));
  });
  it("mount from a repository that does not have it", async () => {
    const bytes = fresh(100);
    assert.equal((await api().begin(other, { mount: digestOf(bytes), from: "more/nothing" })).status, 202);
  });
  for (const [name, bytes] of Object.entries({ empty: Buffer.alloc(0), emptyJSON: Buffer.from("{}") })) {
    it(name, async () => {
      created(await api().pushBlob(repository, bytes));
      const head = await api().blob("HEAD", repository, digestOf(bytes));
      assert.equal(head.status, 200);
      assert.equal(head.header("content-length"), String(bytes.length));
      assert.deepEqual((await api().blob("GET", repository, digestOf(bytes))).body, bytes);
      deleted(await api().blob("DELETE", repository, digestOf(bytes)));
    });
  }
  it("delete of a blob that is not there", async () => {
    assert.equal((await api().blob("DELETE", repository, digestOf("nothing"))).status, 404);
  });
}

function ranges(api: () => RegistryApi, it: Case): void {
  const bytes = fresh(2048);
  const digest = digestOf(bytes);
  it("push the blob", async () => {
    created(await api().pushBlob(repository, bytes));
  });
  const parts: readonly [range: string, start: number, end: number][] = [
    ["500-1499", 500, 1500],
    ["500-", 500, 2048],
    ["-500", 1548, 2048],
    ["2000-5000", 2000, 2048],
  ];
  for (const [range, start, end] of parts) {
    it(`range ${range}`, async () => {
      const answer = await api().blob("GET", repository, digest, { range: `bytes=${range}` });
      assert.equal(answer.status, 206);
      assert.equal(answer.header("content-range"), `bytes ${start}-${end - 1}/2048`);
      assert.equal(answer.header("content-length"), String(end - start));
      assert.deepEqual(answer.body, bytes.subarray(start, end));
    });
  }
  for (const range of ["500-0", "5000-10000"]) {
    it(`range ${range}`, async () => {
      const answer = await api().blob("GET", repository, digest, { range: `bytes=${range}` });
      assert.equal(answer.status, 416);
    });
  }
}

function sha512(api: () => RegistryApi, it: Case): void {
  it("a blob of another algorithm is refused by name", async () => {
    const bytes = fresh(100);
    const begun = await api().begin(repository);
    const query = { digest: digestOf(bytes, "sha512") };
    const answer = await api().send("PUT", begun.header("location"), { query, headers: octets, body: bytes });
    assert.equal(answer.status, 400);
    assert.deepEqual(answer.codes(), ["DIGEST_INVALID"]);
    assert.match(answer.body.toString(), /only sha256/);
    const asked = await api().begin(repository, { "digest-algorithm": "sha512" });
    assert.equal(asked.status, 400);
  });
  it("a blob of another algorithm is not there", async () => {
    assert.equal((await api().blob("HEAD", repository, digestOf("x", "sha512"))).status, 404);
    assert.equal((await api().manifest("GET", repository, digestOf("x", "sha512"))).status, 404);
  });
}

function content(api: () => RegistryApi, it: Case): void {
  const roundTrip = async (tag: string, document: Document) => {
    created(await api().pushManifest(repository, tag, document));
    for (const reference of [tag, document.digest]) {
      const head = await api().manifest("HEAD", repository, reference);
      assert.equal(head.status, 200);
      assert.equal(head.header("content-length"), String(document.bytes.length));
      const answer = await api().manifest("GET", repository, reference);
      assert.deepEqual(answer.body, document.bytes);
      assert.equal(answer.header("docker-content-digest"), document.digest);
      assert.equal(answer.header("content-type"), document.mediaType);
    }
  };
  const pushed = async (each: ImageFixture) => {
    await pushAll(api(), repository, [each.config, ...each.layers]);
    return each;
  };
  const members = async () => {
    const made = [await pushed(image()), await pushed(image())];
    for (const member of made) created(await api().pushManifest(repository, member.digest, member));
    return made;
  };

  it("image", async () => roundTrip("image", await pushed(image({ layers: [fresh(10), fresh(20)] }))));
  it("large manifest", async () => {
    const annotations = Object.fromEntries(Array.from({ length: 390 }, (_, i) => [`large-${i}`, "A".repeat(10_000)]));
    await roundTrip("large", await pushed(image({ more: { annotations } })));
  });
  it("index", async () => roundTrip("index", index(await members())));
  it("nested index", async () => {
    const inner = index(await members());
    created(await api().pushManifest(repository, inner.digest, inner));
    await roundTrip("nested", index([inner]));
  });
  it("empty index", () => roundTrip("empty-index", index([])));
  it("artifact", async () => {
    const more = { artifactType: "application/vnd.example.one" };
    const fixture = image({ config: Buffer.from("{}"), configType: emptyType, more });
    await roundTrip("artifact", await pushed(fixture));
  });
  it("artifact index", async () =>
    roundTrip("artifact-index", index(await members(), { artifactType: "application/vnd.example.one" })));
  it("data field", async () => {
    const layer = Buffer.from("some data");
    const layers = [{ ...descriptor(layer, "application/octet-stream"), data: layer.toString("base64") }];
    await roundTrip("data", await pushed(image({ layers: [layer], more: { layers } })));
  });
  it("non-distributable layers", async () => {
    const absent = fresh(50);
    const type = "application/vnd.oci.image.layer.nondistributable.v1.tar";
    const layers = [{ ...descriptor(absent, type), urls: ["https://store.example/blob"] }];
    await roundTrip("foreign", await pushed(image({ layers: [], more: { layers } })));
  });
  it("custom fields", async () => roundTrip("custom", await pushed(image({ more: { "org.example.field": [1, 2] } }))));
  it("no layers", async () => roundTrip("no-layers", await pushed(image({ layers: [] }))));
  it("tag parameters", async () => {
    const each = await pushed(image());
    const tags = Array.from({ length: 10 }, (_, i) => `many-${i}`);
    const answer = created(await api().pushManifest(repository, each.digest, each, { tag: tags }));
    assert.deepEqual(answer.header("oci-tag").split(/,\s*/), tags);
    for (const tag of tags) assert.deepEqual((await api().manifest("GET", repository, tag)).body, each.bytes);
  });
  it("sparse image", async () => {
    const each = image();
    await pushAll(api(), repository, [each.config]);
    const answer = await api().pushManifest(repository, "sparse", each);
    assert.equal(answer.status, 400);
    assert.deepEqual(answer.codes(), ["MANIFEST_BLOB_UNKNOWN"]);
    assert.equal((await api().manifest("GET", repository, "sparse")).status, 404);
  });
  it("sparse index", async () => {
    const answer = await api().pushManifest(repository, "sparse-index", index([image()]));
    assert.equal(answer.status, 400);
    assert.deepEqual(answer.codes(), ["MANIFEST_BLOB_UNKNOWN"]);
  });
}

function manifestErrors(api: () => RegistryApi, it: Case): void {
  it("manifest with a digest that is not its own", async () => {
    const each = image();
    await pushAll(api(), repository, [each.config, ...each.layers]);
    const spaced = { ...each, bytes: Buffer.concat([each.bytes, Buffer.from("  ")]) };
    const answer = await api().pushManifest(repository, each.digest, spaced);
    assert.equal(answer.status, 400);
    assert.deepEqual(answer.codes(), ["DIGEST_INVALID"]);
    assert.equal((await api().manifest("GET", repository, each.digest)).status, 404);
  });
  it("manifest of another type than it says", async () => {
    const each = image();
    await pushAll(api(), repository, [each.config, ...each.layers]);
    const mistyped = { ...each, mediaType: "application/vnd.docker.distribution.manifest.v2+json" };
    assert.equal((await api().pushManifest(repository, "mistyped", mistyped)).status, 400);
  });
  it("manifest that is no JSON", async () => {
    const broken = { ...documentOf({}, ociManifest), bytes: Buffer.from("{nothing") };
    const answer = await api().pushManifest(repository, "broken", broken);
    assert.equal(answer.status, 400);
    assert.deepEqual(answer.codes(), ["MANIFEST_INVALID"]);
  });
  it("manifest of more than 4 MiB", async () => {
    const answer = await api().pushManifest(repository, "huge", image({ more: { padding: "A".repeat(5_000_000) } }));
    assert.equal(answer.status, 413);
  });
  it("reference that is neither a tag nor a digest", async () => {
    assert.equal((await api().pushManifest(repository, "-no", image())).status, 400);
  });
}
