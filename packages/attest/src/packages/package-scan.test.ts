import assert from "node:assert/strict";
import { execFile } from "node:child_process";
import { existsSync } from "node:fs";
import { mkdir, mkdtemp, readFile, rm, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { basename, dirname, join } from "node:path";
import { DatabaseSync } from "node:sqlite";
import { type TestContext, test } from "node:test";
import { promisify } from "node:util";
import * as fc from "fast-check";
import { spdxDocument } from "../spdx.ts";
import { PackageScan } from "./package-scan.ts";

const run = promisify(execFile);
const missing = (...programs: string[]): string | false => {
  const absent = programs.filter((name) => !["/usr/bin", "/bin"].some((dir) => existsSync(join(dir, name))));
  return absent.length > 0 && `missing on this host: ${absent.join(", ")}`;
};

async function folder(context: TestContext): Promise<string> {
  const path = await mkdtemp(join(tmpdir(), "attest-"));
  context.after(() => rm(path, { recursive: true, force: true }));
  return path;
}

function wants(packages: PackageScan, path: string, sizeBytes: number): boolean {
  return packages.wants(dirname(path).replace(/^\.$/, ""), basename(path), sizeBytes);
}

/** As a builder does it: ask, then hand over what was wanted. */
function scan(files: Readonly<Record<string, Buffer | string>>) {
  const packages = new PackageScan();
  const wanted = new Map<string, Buffer>();
  for (const [path, content] of Object.entries(files)) {
    const bytes = Buffer.from(content as string);
    if (wants(packages, path, bytes.length)) wanted.set(path, bytes);
  }
  return packages.list(wanted);
}

const debian = 'PRETTY_NAME="Debian GNU/Linux 12"\nVERSION_ID="12"\nID=debian\n';

test("dpkg's database gives the packages that dpkg-query names", { skip: missing("dpkg-query") }, async () => {
  const list = scan({ "var/lib/dpkg/status": await readFile("/var/lib/dpkg/status"), "etc/os-release": debian });
  // ${Status} of what is there but not whole differs from "installed" and still has files.
  const format = "${db:Status-Status} ${Package} ${Version} ${Architecture}\n";
  const { stdout } = await run("dpkg-query", ["-W", "-f", format], { maxBuffer: 64 * 2 ** 20 });
  const expected = stdout
    .trim()
    .split("\n")
    .map((line) => line.split(" "))
    .filter(([state]) => state !== "not-installed" && state !== "config-files")
    .map(([, ...rest]) => rest.join(" "));
  assert.ok(expected.length > 20);
  assert.deepEqual(
    list.packages.map(({ name, version, architecture }) => `${name} ${version} ${architecture}`).toSorted(),
    expected.toSorted(),
  );
  assert.deepEqual(list.unread, []);
  assert.match(
    list.packages.find(({ name }) => name === "dpkg")?.purl ?? "",
    /^pkg:deb\/debian\/dpkg@1[^?]*\?arch=\w+&distro=debian-12$/,
  );
});

test("removed packages are left out, and distroless images keep one file for each", () => {
  const stanza = (name: string, status: string) =>
    `Package: ${name}\n${status}Version: 1:2.0+b1\nArchitecture: all\nDescription: x\n Package: continued\n`;
  const list = scan({
    "/var/lib/dpkg/status": [
      stanza("kept", "Status: install ok installed\n"),
      stanza("removed", "Status: deinstall ok config-files\n"),
      stanza("half", "Status: install reinstreq half-installed\n"),
    ].join("\n"),
    "/var/lib/dpkg/status.d/base": stanza("base", ""),
    "/var/lib/dpkg/status.d/base.md5sums": "d41d8cd9 etc/x\n",
    "/var/lib/dpkg/status-old": stanza("old", ""),
  });
  assert.deepEqual(
    list.packages.map(({ name }) => name),
    ["base", "half", "kept"],
  );
  assert.equal(list.packages[0]?.purl, "pkg:deb/base@1:2.0%2Bb1?arch=all");
  assert.equal(list.packages[0].foundIn, "var/lib/dpkg/status.d/base");
});

test("apk's database, in the place of old and new releases", () => {
  const installed = `C:Q1mI7b4T6
P:musl
V:1.2.5-r0
A:x86_64
S:408135
I:667648
T:the musl c library (libc) implementation
L:MIT
F:lib
R:libc.musl-x86_64.so.1

C:Q1Opb
P:busybox
V:1.36.1-r28
A:x86_64
L:GPL-2.0-only
`;
  const release = "ID=alpine\nVERSION_ID=3.20.0\n";
  for (const path of ["lib/apk/db/installed", "usr/lib/apk/db/installed"]) {
    const list = scan({ [path]: installed, "usr/lib/os-release": release });
    assert.deepEqual(
      list.packages.map(({ purl, license }) => [purl, license]),
      [
        ["pkg:apk/alpine/busybox@1.36.1-r28?arch=x86_64&distro=alpine-3.20.0", "GPL-2.0-only"],
        ["pkg:apk/alpine/musl@1.2.5-r0?arch=x86_64&distro=alpine-3.20.0", "MIT"],
      ],
    );
  }
});

/** Packages made by rpmbuild and entered by rpm into its own database. */
async function rpmDatabase(dir: string): Promise<{ readonly file: Buffer; readonly names: readonly string[] }> {
  const database = join(dir, "db");
  const packages: readonly [name: string, extra: string][] = [
    ["first", "License: MIT\n"],
    ["second", "License: GPL-2.0-or-later\nEpoch: 7\n"],
    ["third", "License: Apache-2.0\n"],
  ];
  for (const [name, extra] of packages) {
    // Of several pages, as real headers are.
    const changes = Array.from({ length: 200 }, (_, line) => `- change ${line}`).join("\n");
    const spec = `Name: ${name}\nVersion: 1.2~rc1\nRelease: 3\nSummary: x\nBuildArch: noarch\n${extra}%description\n${changes}\n%files\n`;
    await writeFile(join(dir, `${name}.spec`), spec);
    await run("rpmbuild", ["-bb", "--define", `_topdir ${dir}`, join(dir, `${name}.spec`)]);
  }
  const rpms = packages.map(([name]) => join(dir, `RPMS/noarch/${name}-1.2~rc1-3.noarch.rpm`));
  const rpm = ["--dbpath", database, "--define", "_db_backend sqlite"];
  await run("rpm", [...rpm, "--initdb"]);
  await run("rpm", [...rpm, "-i", "--force-debian", "--justdb", "--nodeps", ...rpms]);
  const { stdout } = await run("rpm", [...rpm, "-qa", "--qf", "%{NAME} %{VERSION}-%{RELEASE} %{ARCH}\n"]);
  return { file: await readFile(join(database, "rpmdb.sqlite")), names: stdout.trim().split("\n").toSorted() };
}

test("an rpm database of SQLite gives the packages that rpm -qa names; the same headers in an ndb and a Berkeley DB too", {
  skip: missing("rpm", "rpmbuild", "perl"),
}, async (context) => {
  const dir = await folder(context);
  const { file, names } = await rpmDatabase(dir);
  assert.equal(names.length, 3);
  const before = Buffer.from(file);
  const namesIn = (path: string, bytes: Buffer) => {
    const list = scan({ [path]: bytes });
    assert.deepEqual(list.unread, []);
    assert.deepEqual(
      list.packages.map(({ name, version, architecture }) => `${name} ${version} ${architecture}`),
      names,
    );
    return list.packages;
  };
  const found = namesIn("var/lib/rpm/rpmdb.sqlite", file);
  assert.ok(file.equals(before), "the bytes are as they were");
  assert.deepEqual(
    found.map(({ purl, license }) => [purl, license]),
    [
      ["pkg:rpm/first@1.2~rc1-3?arch=noarch", "MIT"],
      ["pkg:rpm/second@1.2~rc1-3?arch=noarch&epoch=7", "GPL-2.0-or-later"],
      ["pkg:rpm/third@1.2~rc1-3?arch=noarch", "Apache-2.0"],
    ],
  );
  const headers = headersOf(file);
  namesIn("usr/lib/sysimage/rpm/Packages.db", ndb(headers));

  // Written by the library that rpm used, through perl's binding to it.
  const bdb = join(dir, "Packages");
  await mkdir(join(dir, "headers"));
  for (const [index, header] of headers.entries()) await writeFile(join(dir, "headers", String(index + 1)), header);
  const script = `use DB_File; my %h; my $i = DB_File::HASHINFO->new; $i->{bsize} = 4096;
    tie(%h, "DB_File", $ARGV[0], O_RDWR|O_CREAT, 0644, $i) or die $!;
    $h{pack("L", 0)} = pack("L", 3);
    for my $n (1..3) { open(my $f, "<:raw", "$ARGV[1]/$n") or die $!; local $/; $h{pack("L", $n)} = <$f>; }
    untie %h;`;
  const written = await run("perl", ["-e", script, bdb, join(dir, "headers")]).then(
    () => true,
    () => false,
  );
  if (!written) return context.diagnostic("perl has no DB_File here: Berkeley DB is not shown");
  const packages = await readFile(bdb);
  namesIn("var/lib/rpm/Packages", packages);
  // Every byte of such a file may be anything: it is read or refused, and always comes to an end.
  fc.assert(
    fc.property(fc.nat({ max: packages.length - 1 }), fc.nat({ max: 255 }), (at, value) => {
      const bytes = Buffer.from(packages);
      bytes[at] = value;
      return scan({ "var/lib/rpm/Packages": bytes }).packages.length <= 4;
    }),
    { numRuns: 300 },
  );
});

function headersOf(sqlite: Buffer): Buffer[] {
  using database = new DatabaseSync(":memory:");
  const bytes = Buffer.from(sqlite);
  bytes.writeUInt16BE(0x0101, 18);
  database.deserialize(bytes);
  return database
    .prepare("SELECT blob FROM Packages")
    .all()
    .map((row) => Buffer.from(row["blob"] as Uint8Array));
}

/** As rpm's lib/backend/ndb/rpmpkg.c lays a database down: two pages of slots, an empty slot, headers between head and tail. */
function ndb(headers: readonly Buffer[]): Buffer {
  const slotPages = 2;
  const slots = Buffer.alloc(slotPages * 4096);
  for (let at = 32; at < slots.length; at += 16) slots.write("Slot", at, "latin1");
  slots.write("RpmP", 0, "latin1");
  slots.writeUInt32LE(slotPages, 12);
  const blobs: Buffer[] = [];
  let block = slots.length / 16;
  headers.forEach((header, index) => {
    const blocks = Math.ceil((header.length + 28) / 16);
    const blob = Buffer.alloc(blocks * 16);
    blob.write("BlbS", 0, "latin1");
    blob.writeUInt32LE(index + 1, 4);
    blob.writeUInt32LE(header.length, 12);
    header.copy(blob, 16);
    blob.writeUInt32LE(header.length, blob.length - 8);
    blob.write("BlbE", blob.length - 4, "latin1");
    const slot = 32 + (index + 1) * 16;
    slots.writeUInt32LE(index + 1, slot + 4);
    slots.writeUInt32LE(block, slot + 8);
    slots.writeUInt32LE(blocks, slot + 12);
    blobs.push(blob);
    block += blocks;
  });
  return Buffer.concat([slots, ...blobs]);
}

test("node_modules and Python's metadata, wherever they lie; what is not installed there is not listed", () => {
  const list = scan({
    "app/package.json": '{"name":"the-app","version":"1.0.0"}',
    "app/node_modules/express/package.json": '{"name":"express","version":"4.19.2","license":"MIT"}',
    "app/node_modules/@acme/tool/package.json":
      '\uFEFF{"name":"@acme/tool","version":"0.1.0","license":{"type":"ISC"}}',
    "app/node_modules/express/lib/package.json": '{"type":"module"}',
    "app/node_modules/a/node_modules/b/package.json": '{"name":"b","version":"2.0.0+x"}',
    "usr/lib/python3/dist-packages/Some_Package-1.0.dist-info/METADATA":
      "Metadata-Version: 2.1\nName: Some_Package\nVersion: 1.0\nLicense: BSD\n\nName: not-this\n",
    "usr/lib/python3/dist-packages/old-2.egg-info/PKG-INFO":
      "Metadata-Version: 1.0\nName: old\nVersion: 2\nLicense: UNKNOWN\n",
    "usr/lib/python3/dist-packages/older-3.egg-info": "Metadata-Version: 1.0\nName: older\nVersion: 3\n",
  });
  assert.deepEqual(
    list.packages.map(({ purl, license }) => [purl, license]),
    [
      ["pkg:npm/%40acme/tool@0.1.0", "ISC"],
      ["pkg:npm/b@2.0.0%2Bx", ""],
      ["pkg:npm/express@4.19.2", "MIT"],
      ["pkg:pypi/some-package@1.0", "BSD"],
      ["pkg:pypi/old@2", ""],
      ["pkg:pypi/older@3", ""],
    ],
  );
  assert.deepEqual(list.unread, []);
});

test("what cannot be read is listed as such, never passed over in silence", () => {
  const npm = (name: string) => `n/node_modules/${name}/package.json`;
  const list = scan({
    "var/lib/rpm/rpmdb.sqlite": `SQLite format 3\0${"and nothing else".repeat(20)}`,
    "var/lib/rpm/rpmdb.sqlite-wal": "changes",
    "var/lib/rpm/Packages": Buffer.alloc(8192),
    "usr/lib/sysimage/rpm/Packages.db": Buffer.alloc(100),
    [npm("broken")]: "{",
    [npm("number")]: "1",
    [npm("unnamed")]: '{"version":"1"}',
    [npm("control")]: '{"name":"a\\u0007b","version":"1"}',
    [npm("lone")]: '{"name":"a\\ud800b","version":"1"}',
    [npm("long")]: `{"name":"${"x".repeat(300)}","version":"1"}`,
    [npm("huge")]: Buffer.alloc(1024 * 1024 + 1, 0x20),
    "x.egg-info/PKG-INFO": "",
  });
  assert.deepEqual(list.packages, []);
  assert.equal(list.unread.length, 12);
  assert.deepEqual(
    list.unread.map(({ problem }) => problem).toSorted(),
    [
      "1 of its packages have no usable name or version",
      "1 of its packages have no usable name or version",
      "1 of its packages have no usable name or version",
      "1 of its packages have no usable name or version",
      "SQLite cannot read it",
      "it has 1048577 bytes",
      "it is empty",
      "it is not JSON",
      "it is not a Berkeley DB hash",
      "it is not a JSON object",
      "it is not an ndb",
      "the database beside it was not closed: its last changes are missing",
    ].toSorted(),
  );
});

test("a SQLite database that is not rpm's own is not run", () => {
  const make = (...statements: string[]) => {
    using database = new DatabaseSync(":memory:");
    for (const statement of statements) database.exec(statement);
    return Buffer.from(database.serialize());
  };
  const endless = "WITH RECURSIVE n(x) AS (SELECT 1 UNION ALL SELECT x + 1 FROM n) SELECT x AS hnum, x AS blob FROM n";
  const hostile = [
    make(`CREATE VIEW Packages AS ${endless}`),
    make("CREATE TABLE Packages (hnum INTEGER PRIMARY KEY, blob BLOB NOT NULL AS (zeroblob(1000000000)))"),
    make("CREATE VIRTUAL TABLE Packages USING fts5(hnum, blob)"),
    make("CREATE TABLE other (x)"),
  ];
  for (const bytes of hostile) {
    const list = scan({ "var/lib/rpm/rpmdb.sqlite": bytes });
    assert.deepEqual(list.packages, []);
    assert.match(list.unread[0]?.problem ?? "", /not rpm's/);
  }
});

test("bounds: too many bytes, too many packages, and a list that still says so", () => {
  const packages = new PackageScan();
  const mib = 2 ** 20;
  assert.ok(wants(packages, "var/lib/dpkg/status", 40 * mib));
  assert.ok(wants(packages, "/var/lib/dpkg/status", 40 * mib), "the same file again");
  assert.ok(!wants(packages, "lib/apk/db/installed", 40 * mib));
  const taken = Array.from({ length: 60 }, (_, n) => wants(packages, `node_modules/p${n}/package.json`, mib));
  assert.equal(taken.filter(Boolean).length, 48);
  const list = packages.list(new Map());
  assert.equal(list.unread.length, 1 + 1 + 12 + 48, "refused, and never handed over");

  const many = Array.from({ length: 50_001 }, (_, n) => `P:p${n}\nV:1\n\n`).join("");
  const bounded = scan({ "lib/apk/db/installed": many });
  assert.equal(bounded.packages.length, 50_000);
  assert.deepEqual(bounded.unread, [{ path: "lib/apk/db/installed", problem: "there are more than 50000 packages" }]);
  const long = Array.from({ length: 20_000 }, (_, n) => `P:${"p".repeat(240)}${n}\nV:1\nL:${"l".repeat(500)}\n\n`).join(
    "",
  );
  const cut = scan({ "lib/apk/db/installed": long });
  assert.ok(cut.packages.length > 8_000 && cut.packages.length < 12_000);
  assert.deepEqual(cut.unread, [{ path: "lib/apk/db/installed", problem: "the package list would become too long" }]);

  const unread = scan(
    Object.fromEntries(Array.from({ length: 1500 }, (_, n) => [`node_modules/p${n}/package.json`, "{"])),
  );
  assert.equal(unread.unread.length, 1000);
  assert.equal(unread.unreadOmitted, 500);
});

test("whatever bytes lie in the places of databases, the scan ends with a list", () => {
  const paths = [
    "var/lib/dpkg/status",
    "lib/apk/db/installed",
    "var/lib/rpm/rpmdb.sqlite",
    "var/lib/rpm/Packages",
    "usr/share/rpm/Packages.db",
    "node_modules/x/package.json",
    "x.dist-info/METADATA",
    "etc/os-release",
  ];
  const text = fc.string({
    unit: fc.constantFrom("P", "V", ":", " ", "\n", "\r", "a", "\0", "Package:", "Version:", "Name:"),
  });
  fc.assert(
    fc.property(fc.constantFrom(...paths), fc.oneof(fc.uint8Array({ maxLength: 9000 }), text), (path, content) => {
      const list = scan({ [path]: Buffer.from(content as string) });
      return list.packages.every(({ name, version }) => name !== "" && version !== "");
    }),
    { numRuns: 500 },
  );
});

test("the SPDX document: one element for each package, what was not read, and the same bytes for the same build", () => {
  const subject = {
    buildId: "build_1",
    createdAtMs: Date.UTC(2026, 0, 2, 3, 4, 5, 678),
    imageName: "registry.test/app:1",
    manifestDigest: `sha256:${"aa".repeat(32)}`,
    rootfsDigest: `sha256:${"bb".repeat(32)}`,
    tool: "unkey-builderd-1",
  };
  const files = {
    "var/lib/dpkg/status": "Package: a\nVersion: 1\nArchitecture: all\n\nPackage: a\nVersion: 1\nArchitecture: all\n",
    "n/node_modules/b/package.json": '{"name":"b","version":"2","license":"SEE LICENSE IN x"}',
    "n/node_modules/c/package.json": "{",
  };
  const bytes = spdxDocument(subject, scan(files));
  assert.ok(bytes.equals(spdxDocument(subject, scan(Object.fromEntries(Object.entries(files).toReversed())))));
  const document = JSON.parse(bytes.toString()) as {
    spdxVersion: string;
    documentNamespace: string;
    creationInfo: { created: string };
    packages: (Record<string, unknown> & { SPDXID: string; annotations?: { comment: string }[] })[];
    relationships: { relatedSpdxElement: string; relationshipType: string }[];
  };
  assert.equal(document.spdxVersion, "SPDX-2.3");
  assert.equal(document.creationInfo.created, "2026-01-02T03:04:05Z");
  assert.equal(document.documentNamespace, `tag:unkey.com,2026:deploy/sbom/build_1/${"bb".repeat(32)}`);
  assert.deepEqual(
    document.packages.map(({ name, versionInfo, licenseComments }) => [name, versionInfo, licenseComments]),
    [
      ["registry.test/app:1", subject.manifestDigest, undefined],
      ["a", "1", undefined],
      ["b", "2", "declared as: SEE LICENSE IN x"],
    ],
  );
  assert.match(
    document.packages[0]?.annotations?.[0]?.comment ?? "",
    /found, not read: n\/node_modules\/c\/.*: it is not JSON/,
  );
  const ids = document.packages.map(({ SPDXID }) => SPDXID);
  assert.equal(new Set(ids).size, ids.length);
  assert.ok(ids.every((id) => /^SPDXRef-[a-zA-Z0-9.-]+$/.test(id)));
  assert.deepEqual(
    document.relationships.map(({ relationshipType }) => relationshipType),
    ["DESCRIBES", "CONTAINS", "CONTAINS"],
  );
  assert.ok(document.relationships.every(({ relatedSpdxElement }) => ids.includes(relatedSpdxElement)));
});
