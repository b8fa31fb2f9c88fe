import assert from "node:assert/strict";
import { after, before, suite, test } from "node:test";
import {
  type Document,
  descriptor,
  digestOf,
  emptyType,
  fresh,
  image,
  index,
  ociIndex,
  octets,
  type RegistryAnswer,
  RegistryApi,
  type RegistryTarget,
} from "./client.ts";

/**
 * The cases of the OCI distribution specification's own conformance suite, v1.1.1, by their names: its four categories
 * `01_pull` to `04_management` (https://github.com/opencontainers/distribution-spec/tree/v1.1.1/conformance). Where that
 * suite accepts several answers, a registry that has the feature gives the one that shows it.
 */

export interface ConformanceSubject {
  readonly name: string;
  readonly start: () => Promise<RegistryTarget & AsyncDisposable>;
  /** Cases that the registry does not offer, and why. */
  readonly lacks: Readonly<Record<string, string>>;
  /** Why nothing of it can run here. */
  readonly skip?: string | false;
}

export type Case = (name: string, body: () => Promise<void>) => void;

/** Starts the subject and gives each category its cases. */
export function withSubject(subject: ConformanceSubject, categories: (api: () => RegistryApi, it: Case) => void): void {
  suite(subject.name, { skip: subject.skip ?? false }, () => {
    let started: (RegistryTarget & AsyncDisposable) | undefined;
    before(async () => {
      started = await subject.start();
    });
    after(async () => {
      await started?.[Symbol.asyncDispose]();
    });
    const api = () => {
      if (!started) throw new Error("the registry has not started");
      return new RegistryApi(started);
    };
    const it: Case = (name, body) => {
      const reason = subject.lacks[name];
      test(name, reason === undefined ? {} : { skip: reason }, body);
    };
    categories(api, it);
  });
}

export function created(answer: RegistryAnswer): RegistryAnswer {
  assert.equal(answer.status, 201, answer.body.toString());
  assert.notEqual(answer.header("location"), "");
  return answer;
}

export function deleted(answer: RegistryAnswer): void {
  assert.equal(answer.status, 202, answer.body.toString());
}

export async function pushAll(api: RegistryApi, repository: string, blobs: readonly Uint8Array[]): Promise<void> {
  for (const blob of blobs) created(await api.pushBlob(repository, blob));
}

const repository = "conformance/first";
const mounted = "conformance/second";
const unknownDigest = digestOf("nobody has this");
const unknownTag = ".INVALID_MANIFEST_NAME";

const errorCodes = [
  "BLOB_UNKNOWN",
  "BLOB_UPLOAD_INVALID",
  "BLOB_UPLOAD_UNKNOWN",
  "DIGEST_INVALID",
  "MANIFEST_BLOB_UNKNOWN",
  "MANIFEST_INVALID",
  "MANIFEST_UNKNOWN",
  "NAME_INVALID",
  "NAME_UNKNOWN",
  "SIZE_INVALID",
  "UNAUTHORIZED",
  "DENIED",
  "UNSUPPORTED",
  "TOOMANYREQUESTS",
];

export function conformance(subject: ConformanceSubject): void {
  withSubject(subject, (api, it) => {
    suite("pull", () => pull(api, it));
    suite("push", () => push(api, it));
    suite("content discovery", () => discovery(api, it));
    suite("content management", () => management(api, it));
  });
}

function pull(api: () => RegistryApi, it: Case): void {
  const layers = [fresh(200)];
  const images = [image({ layers }), image({ layers })] as const;
  const tag = "tagtest0";
  suite("Setup", () => {
    it("Populate registry with test blob", async () => {
      for (const { config } of images) created(await api().pushBlob(repository, config));
    });
    it("Populate registry with test layer", () => pushAll(api(), repository, layers));
    it("Populate registry with test manifest", async () => {
      created(await api().pushManifest(repository, tag, images[0]));
      created(await api().pushManifest(repository, images[1].digest, images[1]));
    });
  });
  suite("Pull blobs", () => {
    const { config } = images[0];
    it("HEAD request to nonexistent blob should result in 404 response", async () => {
      assert.equal((await api().blob("HEAD", repository, unknownDigest)).status, 404);
    });
    it("HEAD request to existing blob should yield 200", async () => {
      const answer = await api().blob("HEAD", repository, digestOf(config));
      assert.equal(answer.status, 200);
      assert.equal(answer.header("docker-content-digest"), digestOf(config));
      assert.equal(answer.header("content-length"), String(config.length));
      assert.equal(answer.body.length, 0);
    });
    it("GET nonexistent blob should result in 404 response", async () => {
      assert.equal((await api().blob("GET", repository, unknownDigest)).status, 404);
    });
    it("GET request to existing blob URL should yield 200", async () => {
      const answer = await api().blob("GET", repository, digestOf(config));
      assert.equal(answer.status, 200);
      assert.deepEqual(answer.body, config);
    });
  });
  suite("Pull manifests", () => {
    const isManifest = async (method: "HEAD" | "GET", reference: string, expected: Document) => {
      const answer = await api().manifest(method, repository, reference);
      assert.equal(answer.status, 200);
      assert.equal(answer.header("docker-content-digest"), expected.digest);
      assert.equal(answer.header("content-type"), expected.mediaType);
      assert.equal(answer.header("content-length"), String(expected.bytes.length));
      if (method === "GET") assert.deepEqual(answer.body, expected.bytes);
    };
    for (const method of ["HEAD", "GET"] as const) {
      it(
        method === "HEAD"
          ? "HEAD request to nonexistent manifest should return 404"
          : "GET nonexistent manifest should return 404",
        async () => assert.equal((await api().manifest(method, repository, "nothing-has-this-tag")).status, 404),
      );
      for (const [number, each] of images.entries()) {
        it(`${method} request to manifest[${number}] path (digest) should yield 200 response`, () =>
          isManifest(method, each.digest, each));
      }
      it(`${method} request to manifest path (tag) should yield 200 response`, () =>
        isManifest(method, tag, images[0]));
    }
  });
  suite("Error codes", () => {
    it("400 response body should contain OCI-conforming JSON message", async () => {
      const answer = await api().manifest("GET", repository, "sha256:totallywrong");
      assert.ok([400, 404].includes(answer.status), String(answer.status));
      const [code] = answer.codes();
      assert.ok(errorCodes.includes(code ?? ""), String(code));
    });
  });
  suite("Teardown", () => {
    it("Delete manifest[0] created in setup", async () =>
      deleted(await api().manifest("DELETE", repository, images[0].digest)));
    it("Delete manifest[1] created in setup", async () =>
      deleted(await api().manifest("DELETE", repository, images[1].digest)));
    for (const number of [0, 1] as const) {
      it(`Delete config[${number}] blob created in setup`, async () =>
        deleted(await api().blob("DELETE", repository, digestOf(images[number].config))));
    }
    it("Delete layer blob created in setup", async () => {
      for (const layer of layers) deleted(await api().blob("DELETE", repository, digestOf(layer)));
    });
  });
}

function push(api: () => RegistryApi, it: Case): void {
  const layer = fresh(300);
  const one = image({ layers: [layer] });
  const empty = image({ layers: [], config: one.config });
  const blobA = fresh(1000);
  let location = "";

  suite("Blob Upload Streamed", () => {
    it("PATCH request with blob in body should yield 202 response", async () => {
      const begun = await api().begin(repository);
      assert.notEqual(begun.header("location"), "");
      const answer = await api().send("PATCH", begun.header("location"), { headers: octets, body: blobA });
      assert.equal(answer.status, 202, answer.body.toString());
      location = answer.header("location");
    });
    it("PUT request to session URL with digest should yield 201 response", async () => {
      const query = { digest: digestOf(blobA) };
      created(await api().send("PUT", location, { query, headers: { ...octets, "content-length": "0" } }));
    });
  });

  suite("Blob Upload Monolithic", () => {
    let status = 0;
    it("GET nonexistent blob should result in 404 response", async () => {
      assert.equal((await api().blob("GET", repository, unknownDigest)).status, 404);
    });
    it("POST request with digest and blob should yield a 201 or 202", async () => {
      const answer = await api().send("POST", `/v2/${repository}/blobs/uploads/`, {
        query: { digest: digestOf(one.config) },
        headers: octets,
        body: one.config,
      });
      assert.notEqual(answer.header("location"), "");
      status = answer.status;
      assert.ok([201, 202].includes(status), String(status));
    });
    it("GET request to blob URL from prior request should yield 200 or 404 based on response code", async () => {
      const answer = await api().blob("GET", repository, digestOf(one.config));
      assert.equal(answer.status, status === 201 ? 200 : 404);
    });
    it("POST request should yield a session ID", async () => {
      const answer = await api().begin(repository);
      assert.equal(answer.status, 202);
      location = answer.header("location");
    });
    it("PUT upload of a blob should yield a 201 Response", async () => {
      const query = { digest: digestOf(one.config) };
      created(await api().send("PUT", location, { query, headers: octets, body: one.config }));
    });
    it("GET request to existing blob should yield 200 response", async () => {
      assert.deepEqual((await api().blob("GET", repository, digestOf(one.config))).body, one.config);
    });
    it("PUT upload of a layer blob should yield a 201 Response", async () => {
      created(await api().pushBlob(repository, layer));
    });
    it("GET request to existing layer should yield 200 response", async () => {
      assert.equal((await api().blob("GET", repository, digestOf(layer))).status, 200);
    });
  });

  suite("Blob Upload Chunked", () => {
    const chunks = [fresh(500), fresh(300)] as const;
    const whole = Buffer.concat(chunks);
    const first = { ...octets, "content-range": "0-499" };
    const second = { ...octets, "content-range": "500-799" };
    it("Out-of-order blob upload should return 416", async () => {
      const begun = await api().begin(repository);
      const answer = await api().send("PATCH", begun.header("location"), { headers: second, body: chunks[1] });
      assert.equal(answer.status, 416);
    });
    it("PATCH request with first chunk should return 202", async () => {
      const begun = await api().begin(repository);
      const answer = await api().send("PATCH", begun.header("location"), { headers: first, body: chunks[0] });
      assert.equal(answer.status, 202, answer.body.toString());
      assert.equal(answer.header("range"), "0-499");
      location = answer.header("location");
    });
    it("Retry previous blob chunk should return 416", async () => {
      const answer = await api().send("PATCH", location, { headers: first, body: chunks[0] });
      assert.equal(answer.status, 416);
    });
    it("Get on stale blob upload should return 204 with a range and location", async () => {
      const answer = await api().send("GET", location);
      assert.equal(answer.status, 204);
      assert.equal(answer.header("range"), "0-499");
      assert.notEqual(answer.header("location"), "");
      location = answer.header("location");
    });
    it("PATCH request with second chunk should return 202", async () => {
      const answer = await api().send("PATCH", location, { headers: second, body: chunks[1] });
      assert.equal(answer.status, 202);
      assert.equal(answer.header("range"), "0-799");
      location = answer.header("location");
    });
    it("PUT request with digest should return 201", async () => {
      const query = { digest: digestOf(whole) };
      created(await api().send("PUT", location, { query, headers: { ...octets, "content-length": "0" } }));
      assert.deepEqual((await api().blob("GET", repository, digestOf(whole))).body, whole);
    });
  });

  suite("Cross-Repository Blob Mount", () => {
    let answer: RegistryAnswer;
    it("Cross-mounting of a blob without the from argument should yield session id", async () => {
      answer = await api().begin(mounted, { mount: unknownDigest });
      assert.equal(answer.status, 202);
      assert.notEqual(answer.header("location"), "");
    });
    it("POST request to mount another repository's blob should return 201 or 202", async () => {
      answer = await api().begin(mounted, { mount: digestOf(blobA), from: repository });
      assert.equal(answer.status, 201);
    });
    it("GET request to test digest within cross-mount namespace should return 200", async () => {
      const path = new URL(answer.header("location"), api().target.origin).pathname;
      assert.equal(path, `/v2/${mounted}/blobs/${digestOf(blobA)}`);
      assert.deepEqual((await api().send("GET", path)).body, blobA);
    });
    it("Cross-mounting of nonexistent blob should yield session id", async () => {
      const refused = await api().begin(mounted, { mount: unknownDigest, from: repository });
      assert.equal(refused.status, 202);
      assert.match(refused.header("location"), new RegExp(`/v2/${mounted}/blobs/uploads/`));
    });
    it("Cross-mounting without from, and automatic content discovery enabled should return a 201", async () => {
      assert.equal((await api().begin(mounted, { mount: digestOf(blobA) })).status, 201);
    });
  });

  suite("Manifest Upload", () => {
    it("GET nonexistent manifest should return 404", async () => {
      const answer = await api().manifest("GET", repository, unknownTag.slice(1));
      assert.equal(answer.status, 404);
    });
    it("PUT should accept a manifest upload", async () => {
      for (let i = 0; i < 4; i++) created(await api().pushManifest(repository, `test${i}`, one));
    });
    it("Registry should accept a manifest upload with no layers", async () => {
      created(await api().pushManifest(repository, "emptylayer", empty));
    });
    it("GET request to manifest URL (digest) should yield 200 response", async () => {
      assert.deepEqual((await api().manifest("GET", repository, one.digest)).body, one.bytes);
    });
  });

  suite("Teardown", () => {
    it("Delete manifest created in tests", async () => {
      for (const { digest } of [one, empty]) deleted(await api().manifest("DELETE", repository, digest));
    });
    it("Delete config blob created in tests", async () =>
      deleted(await api().blob("DELETE", repository, digestOf(one.config))));
    it("Delete layer blob created in setup", async () =>
      deleted(await api().blob("DELETE", repository, digestOf(layer))));
  });
}

function discovery(api: () => RegistryApi, it: Case): void {
  const place = "conformance/discovery";
  const layer = fresh(100);
  const one = image({ layers: [layer] });
  const tags = ["test0", "TEST0", "test1", "TEST1", "test2", "TEST2", "test3", "TEST3"];
  const sorted = tags.toSorted((a, b) => (a < b ? -1 : 1));
  const typeA = "application/vnd.nhl.peanut.butter.bagel";
  const typeB = "application/vnd.nba.strawberry.jam.croissant";
  const emptyJson = Buffer.from("{}");
  const blobA = Buffer.from("NHL Peanut Butter on my NHL bagel");
  const blobB = Buffer.from("NBA Strawberry Jam on my NBA croissant");
  const subject = image({ layers: [layer] });
  const absent = image();
  const note = (text: string) => ({ annotations: { "org.opencontainers.conformance.test": text } });
  const of = ({ bytes, mediaType }: Document) => ({ subject: descriptor(bytes, mediaType) });
  /** By `artifactType`, or by the config's type. */
  const referrers = [
    {
      type: typeA,
      document: image({ config: blobA, configType: typeA, layers: [], more: { ...of(subject), ...note("config A") } }),
    },
    {
      type: typeA,
      document: image({
        config: emptyJson,
        configType: emptyType,
        layers: [blobA],
        more: { artifactType: typeA, ...of(subject), ...note("layer A") },
      }),
    },
    {
      type: typeB,
      document: image({ config: blobB, configType: typeB, layers: [], more: { ...of(subject), ...note("config B") } }),
    },
    {
      type: typeB,
      document: image({
        config: emptyJson,
        configType: emptyType,
        layers: [blobB],
        more: { artifactType: typeB, ...of(subject), ...note("layer B") },
      }),
    },
    {
      type: typeB + "-index",
      document: index([], { artifactType: `${typeB}-index`, ...of(subject), ...note("index") }),
    },
  ];
  const orphan = image({
    config: emptyJson,
    configType: emptyType,
    layers: [blobB],
    more: { artifactType: typeB, ...of(absent) },
  });
  interface Listed {
    readonly manifests: readonly {
      readonly digest: string;
      readonly artifactType: string;
      readonly annotations: Record<string, string>;
      readonly size: number;
      readonly mediaType: string;
    }[];
  }
  const list = async (digest: string, query = {}) => {
    const answer = await api().send("GET", `/v2/${place}/referrers/${digest}`, { query });
    assert.equal(answer.status, 200, answer.body.toString());
    assert.equal(answer.header("content-type"), ociIndex);
    return { answer, manifests: (answer.json() as Listed).manifests };
  };

  suite("Setup", () => {
    it("Populate registry with test blob", () => pushAll(api(), place, [one.config, subject.config]));
    it("Populate registry with test layer", () => pushAll(api(), place, [layer]));
    it("Populate registry with test tags", async () => {
      for (const tag of tags) created(await api().pushManifest(place, tag, one));
    });
    it("References setup", async () => {
      await pushAll(api(), place, [emptyJson, blobA, blobB]);
      for (const { document } of [...referrers, { document: orphan }]) {
        const answer = created(await api().pushManifest(place, document.digest, document));
        const named = document === orphan ? absent : subject;
        assert.equal(answer.header("oci-subject"), named.digest);
      }
      created(await api().pushManifest(place, "subject", subject));
      deleted(await api().manifest("DELETE", place, "subject")); // the tag, not the manifest
    });
  });
  suite("Test content discovery endpoints (listing tags)", () => {
    const page = async (query: Record<string, string>) => {
      const answer = await api().send("GET", `/v2/${place}/tags/list`, { query });
      assert.equal(answer.status, 200);
      return answer.json() as { name: string; tags: string[] };
    };
    it("GET request to list tags should yield 200 response", async () => {
      assert.deepEqual(await page({}), { name: place, tags: sorted });
    });
    it("GET number of tags should be limitable by `n` query parameter", async () => {
      assert.deepEqual((await page({ n: "4" })).tags, sorted.slice(0, 4));
    });
    it("GET start of tag is set by `last` query parameter", async () => {
      assert.deepEqual((await page({ n: "3", last: sorted[3] ?? "" })).tags, sorted.slice(4, 7));
    });
  });
  suite("Test content discovery endpoints (listing references)", () => {
    it("GET request to nonexistent blob should result in empty 200 response", async () => {
      assert.deepEqual((await list(unknownDigest)).manifests, []);
    });
    it("GET request to existing blob should yield 200", async () => {
      const { manifests } = await list(subject.digest);
      const expected = new Map(referrers.map(({ type, document }) => [document.digest, { type, document }]));
      assert.equal(manifests.length, expected.size);
      for (const each of manifests) {
        const { type, document } = expected.get(each.digest) ?? assert.fail(each.digest);
        assert.equal(each.artifactType, type);
        assert.equal(each.size, document.bytes.length);
        assert.equal(each.mediaType, document.mediaType);
        assert.deepEqual(each.annotations, (JSON.parse(document.bytes.toString()) as typeof each).annotations);
      }
    });
    it("GET request to existing blob with filter should yield 200", async () => {
      const { answer, manifests } = await list(subject.digest, { artifactType: typeA });
      assert.equal(answer.header("oci-filters-applied"), "artifactType");
      const wanted = referrers.filter(({ type }) => type === typeA).map(({ document }) => document.digest);
      assert.deepEqual(manifests.map(({ digest }) => digest).toSorted(), wanted.toSorted());
    });
    it("GET request to missing manifest should yield 200", async () => {
      const { manifests } = await list(absent.digest);
      assert.deepEqual(
        manifests.map(({ digest }) => digest),
        [orphan.digest],
      );
    });
  });
  suite("Teardown", () => {
    it("References teardown", async () => {
      for (const { document } of [...referrers, { document: orphan }, { document: subject }]) {
        deleted(await api().manifest("DELETE", place, document.digest));
      }
      for (const blob of [emptyJson, blobA, blobB]) deleted(await api().blob("DELETE", place, digestOf(blob)));
    });
    it("Delete created manifest & associated tags", async () => {
      deleted(await api().manifest("DELETE", place, one.digest));
      const answer = await api().send("GET", `/v2/${place}/tags/list`);
      if (answer.status === 200) assert.deepEqual((answer.json() as { tags: string[] | null }).tags ?? [], []);
    });
    it("Delete config blob created in tests", async () =>
      deleted(await api().blob("DELETE", place, digestOf(one.config))));
    it("Delete layer blob created in setup", async () => deleted(await api().blob("DELETE", place, digestOf(layer))));
  });
}

function management(api: () => RegistryApi, it: Case): void {
  const place = "conformance/management";
  const layer = fresh(100);
  const one = image({ layers: [layer] });
  const tags = async () => {
    const answer = await api().send("GET", `/v2/${place}/tags/list`);
    return answer.status === 404 ? [] : ((answer.json() as { tags: string[] | null }).tags ?? []);
  };
  suite("Setup", () => {
    it("Populate registry with test config blob", () => pushAll(api(), place, [one.config]));
    it("Populate registry with test layer", () => pushAll(api(), place, [layer]));
    it("Populate registry with test tag", async () => {
      created(await api().pushManifest(place, "tagtodelete", one));
    });
    it("Check how many tags there are before anything gets deleted", async () => {
      assert.deepEqual(await tags(), ["tagtodelete"]);
    });
  });
  suite("Manifest delete", () => {
    it("DELETE request to manifest tag should return 202, unless tag deletion is disallowed (400/405)", async () => {
      deleted(await api().manifest("DELETE", place, "tagtodelete"));
      assert.equal((await api().manifest("GET", place, one.digest)).status, 200, "its manifest stays");
    });
    it("DELETE request to manifest (digest) should yield 202 response unless already deleted", async () => {
      deleted(await api().manifest("DELETE", place, one.digest));
    });
    it("GET request to deleted manifest URL should yield 404 response, unless delete is disallowed", async () => {
      assert.equal((await api().manifest("GET", place, one.digest)).status, 404);
    });
    it("GET request to tags list should reflect manifest deletion", async () => {
      assert.deepEqual(await tags(), []);
    });
  });
  suite("Blob delete", () => {
    it("DELETE request to blob URL should yield 202 response", async () => {
      for (const blob of [one.config, layer]) deleted(await api().blob("DELETE", place, digestOf(blob)));
    });
    it("GET request to deleted blob URL should yield 404 response", async () => {
      assert.equal((await api().blob("GET", place, digestOf(one.config))).status, 404);
    });
  });
}
