import assert from "node:assert/strict";
import { X509Certificate } from "node:crypto";
import {
  chmodSync,
  copyFileSync,
  mkdtempSync,
  readdirSync,
  readFileSync,
  rmSync,
  statSync,
  writeFileSync,
} from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterEach, beforeEach, test } from "node:test";
import { createSecureContext } from "node:tls";
import { type Clock, isServiceError, systemClock } from "@unkey/base";
import { makeAuthority } from "./certificate.ts";
import {
  Authority,
  ensureIdentity,
  HostCertificates,
  IdentitySource,
  loadIdentity,
  parseSpiffeId,
  spiffeIdOf,
} from "./index.ts";

let dir = "";
beforeEach(() => {
  dir = mkdtempSync(join(tmpdir(), "pki-"));
});
afterEach(() => {
  rmSync(dir, { recursive: true, force: true });
});

const hourMs = 3_600_000;
const id = { trustDomain: "unkey.test", service: "metald", instance: "host_1" };
const clockAt = (offsetMs: number): Clock => ({ ...systemClock, nowMs: () => Date.now() + offsetMs });

function issued(): { authority: Authority; identityDir: string } {
  const authority = Authority.open(join(dir, "ca"), { commonName: "Test authority" });
  const identityDir = join(dir, "metald");
  ensureIdentity(authority, identityDir, { id });
  return { authority, identityDir };
}

function refuses(identityDir: string, message: RegExp, options = {}): void {
  assert.throws(
    () => loadIdentity(identityDir, options),
    (error: unknown) => {
      assert.ok(isServiceError(error, "IDENTITY_UNUSABLE"), String(error));
      assert.match(error.message, message);
      return true;
    },
  );
}

test("the authority's key is private and its certificate signs leaves only", () => {
  const { authority } = issued();
  assert.equal(statSync(join(dir, "ca")).mode & 0o777, 0o700);
  assert.equal(statSync(join(dir, "ca", "ca.key")).mode & 0o777, 0o600);
  assert.equal(authority.certificate.ca, true);
  assert.equal(authority.certificate.verify(authority.certificate.publicKey), true);
  assert.match(authority.certificate.subject, /CN=Test authority/);
});

test("an authority is made once, and a lost race leaves nothing behind", async () => {
  const script = `import { Authority } from ${JSON.stringify(new URL("./index.ts", import.meta.url).href)};
    process.stdout.write(Authority.open(process.argv[1], { commonName: "x" }).certificate.fingerprint256);`;
  const { execFile } = await import("node:child_process");
  const { promisify } = await import("node:util");
  const open = () =>
    promisify(execFile)(process.execPath, ["--input-type=module-typescript", "-e", script, join(dir, "ca")]);
  const prints = new Set((await Promise.all([open(), open(), open()])).map((result) => result.stdout));
  assert.equal(prints.size, 1);
  assert.equal([...prints][0]?.length, 95);
  assert.deepEqual(readdirSync(dir), ["ca"]);
});

test("an authority that others can read, or that was made for other domains, is refused", () => {
  Authority.open(join(dir, "ca"), { commonName: "x", permittedDns: ["localhost"] });
  assert.throws(
    () => Authority.open(join(dir, "ca"), { commonName: "x", permittedDns: ["example.org"] }),
    /other domains/,
  );
  chmodSync(join(dir, "ca", "ca.key"), 0o640);
  assert.throws(
    () => Authority.open(join(dir, "ca"), { commonName: "x", permittedDns: ["localhost"] }),
    /open to others/,
  );
});

test("a leaf names its service, lives at most a day and serves both ends", () => {
  const { authority, identityDir } = issued();
  const identity = loadIdentity(identityDir);
  const { certificate } = identity;
  assert.deepEqual(identity.id, id);
  assert.deepEqual(spiffeIdOf(certificate), id);
  assert.equal(certificate.ca, false);
  assert.deepEqual(certificate.keyUsage, ["1.3.6.1.5.5.7.3.1", "1.3.6.1.5.5.7.3.2"]);
  assert.equal(certificate.checkIssued(authority.certificate), true);
  assert.equal(certificate.checkHost("localhost"), "localhost");
  assert.equal(certificate.checkIP("127.0.0.1"), "127.0.0.1");
  assert.equal(certificate.checkIP("::1"), "::1");
  assert.ok(identity.expiresAtMs - Date.now() <= 24 * hourMs);
  assert.equal(statSync(join(identityDir, "tls.key")).mode & 0o777, 0o600);
  createSecureContext({ cert: identity.certPem, key: identity.keyPem, ca: identity.caPem });
  assert.throws(() => authority.issue({ commonName: "x", names: {}, lifetimeMs: 25 * hourMs }), RangeError);
});

test("openssl accepts the chain, and honours the constraint on names", async (t) => {
  const { execFileSync, spawnSync } = await import("node:child_process");
  if (spawnSync("openssl", ["version"]).status !== 0) return t.skip("openssl is not installed");
  const authority = Authority.open(join(dir, "ca"), { commonName: "Ingress", permittedDns: ["localhost"] });
  const verify = (name: string) => {
    const path = join(dir, "leaf.pem");
    writeFileSync(path, authority.issue({ commonName: name, names: { dnsNames: [name] } }).certPem);
    return spawnSync("openssl", ["verify", "-x509_strict", "-CAfile", join(dir, "ca", "ca.crt"), path], {
      encoding: "utf8",
    });
  };
  assert.match(verify("hello.localhost").stdout, /OK/);
  assert.match(verify("bank.example").stderr, /permitted subtree violation/);
  const text = execFileSync("openssl", ["x509", "-in", join(dir, "ca", "ca.crt"), "-noout", "-text"], {
    encoding: "utf8",
  });
  assert.match(text, /CA:TRUE, pathlen:0/);
  assert.match(text, /Certificate Sign, CRL Sign/);
});

test("an identity with a flaw is refused with the flaw's name", () => {
  const { identityDir } = issued();
  refuses(join(dir, "nowhere"), /tls.crt is missing/);
  refuses(identityDir, /expired on/, { clock: clockAt(25 * hourMs) });
  refuses(identityDir, /not valid before/, { clock: clockAt(-hourMs) });
  refuses(identityDir, /speaks for metald, not for gatewayd/, { service: "gatewayd" });
  refuses(identityDir, /trust domain unkey.test, not to other.test/, { trustDomain: "other.test" });

  chmodSync(join(identityDir, "tls.key"), 0o644);
  refuses(identityDir, /tls.key can be read by others/);
  chmodSync(join(identityDir, "tls.key"), 0o600);

  const other = Authority.open(join(dir, "ca2"), { commonName: "Other" });
  ensureIdentity(other, join(dir, "foreign"), { id });
  copyFileSync(join(dir, "foreign", "ca.crt"), join(identityDir, "ca.crt"));
  refuses(identityDir, /not signed by the authority/);
  copyFileSync(join(dir, "foreign", "tls.key"), join(identityDir, "tls.key"));
  refuses(identityDir, /not the key of/);
  writeFileSync(join(identityDir, "tls.crt"), "garbage");
  refuses(identityDir, /tls.crt is not PEM/);
});

test("a certificate without exactly one SPIFFE name is refused", () => {
  const { authority, identityDir } = issued();
  const uri = (service: string) => `spiffe://unkey.test/${service}`;
  for (const uris of [
    [],
    [uri("a"), uri("b")],
    ["https://example.org/metald"],
    ["spiffe://unkey.test/a, URI:spiffe://x/y"],
  ]) {
    const { certPem, keyPem } = authority.issue({ commonName: "x", names: { uris } });
    writeFileSync(join(identityDir, "tls.crt"), certPem);
    writeFileSync(join(identityDir, "tls.key"), keyPem);
    refuses(identityDir, /carries no name of the form/);
  }
  assert.equal(parseSpiffeId("spiffe://unkey.test/metald/../gatewayd"), undefined);
  assert.equal(parseSpiffeId("spiffe://unkey.test/"), undefined);
});

test("an identity is renewed at half of its life, for another name and for another authority", () => {
  const { authority, identityDir } = issued();
  assert.equal(ensureIdentity(authority, identityDir, { id }), false);
  assert.equal(ensureIdentity(authority, identityDir, { id }, clockAt(11 * hourMs)), false);
  assert.equal(ensureIdentity(authority, identityDir, { id }, clockAt(13 * hourMs)), true);
  assert.equal(ensureIdentity(authority, identityDir, { id: { ...id, instance: "host_2" } }), true);
  const other = Authority.open(join(dir, "ca2"), { commonName: "Other" });
  assert.equal(ensureIdentity(other, identityDir, { id }), true);
  assert.equal(loadIdentity(identityDir).caPem, other.certPem);
});

test("a renewal is noticed, a broken one is reported and keeps the old identity", () => {
  const { authority, identityDir } = issued();
  const errors: unknown[] = [];
  using source = IdentitySource.open(identityDir, { onError: (error) => errors.push(error) });
  const seen: string[] = [];
  source.onRenewal((identity) => seen.push(identity.certificate.serialNumber));
  const first = source.current.certificate.serialNumber;
  assert.equal(source.reload(), false);

  const { keyPem } = authority.issue({ commonName: "x", names: {} });
  writeFileSync(join(identityDir, "tls.key"), keyPem);
  assert.equal(source.reload(), false);
  assert.equal(errors.length, 1);
  assert.equal(source.current.certificate.serialNumber, first);

  ensureIdentity(authority, identityDir, { id });
  assert.equal(source.reload(), true);
  assert.notEqual(source.current.certificate.serialNumber, first);
  assert.deepEqual(seen, [source.current.certificate.serialNumber]);
});

test("host certificates are kept, bounded and only made for host names", () => {
  const authority = Authority.open(join(dir, "ca"), { commonName: "Ingress" });
  const hosts = new HostCertificates({ authority, maxHosts: 2 });
  const first = hosts.contextFor("a.localhost");
  assert.ok(first);
  assert.equal(hosts.contextFor("A.localhost"), first);
  hosts.contextFor("b.localhost");
  assert.equal(hosts.contextFor("a.localhost"), first);
  hosts.contextFor("c.localhost"); // b was used least recently
  assert.equal(hosts.contextFor("a.localhost"), first);
  for (const odd of ["", "a..b", "-a.example", "a b", "x".repeat(64), "a.example\0.org", "*.localhost"]) {
    assert.equal(hosts.contextFor(odd), undefined, odd);
  }
});

test("dates from 2050 on are written as GeneralizedTime", () => {
  const { certPem } = makeAuthority({
    commonName: "late",
    notBeforeMs: Date.UTC(2049, 11, 31, 23, 59, 59),
    notAfterMs: Date.UTC(2050, 0, 1),
  });
  const certificate = new X509Certificate(certPem);
  assert.equal(certificate.validFromDate.toISOString(), "2049-12-31T23:59:59.000Z");
  assert.equal(certificate.validToDate.toISOString(), "2050-01-01T00:00:00.000Z");
});

test("the key of an identity never stands in its certificate files", () => {
  const { identityDir } = issued();
  for (const file of ["tls.crt", "ca.crt"]) {
    assert.doesNotMatch(readFileSync(join(identityDir, file), "utf8"), /PRIVATE KEY/);
  }
});
