import assert from "node:assert/strict";
import { createHash, randomBytes } from "node:crypto";
import { mkdtempSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { after, before, test } from "node:test";
import { busyboxPath, needsRegistry, startTestRegistry, type TestRegistry } from "@unkey/oci/testing";
import { type Platform, startPlatform } from "@unkey/testkit";
import {
  busyboxTree,
  copyInto,
  layerOf,
  layoutOf,
  manifestOf,
  needsImageTools,
  push,
  type RunConfig,
  run,
  writeInto,
} from "./harness/foreign-image.ts";
import { drivesOf, skipReason } from "./harness/host.ts";
import { callApi, deployAndWait, getJson, visit } from "./harness/public-api.ts";

/** Guests of images that differ in what they are made of. Each tells what it sees of itself from inside. */
const skip = skipReason || needsRegistry || needsImageTools;
const guestDir = join(import.meta.dirname, "../../node_modules/.cache/unkey-guest");
const httpd: RunConfig = { entrypoint: ["/bin/httpd", "-f", "-p", "8080", "-h", "/srv"], port: 8080 };
const stack = new AsyncDisposableStack();
let scratch: string;
let platform: Platform;
let registry: TestRegistry;

before(async () => {
  if (skip) return;
  scratch = mkdtempSync(join(tmpdir(), "unkey-images-"));
  stack.defer(() => rmSync(scratch, { recursive: true, force: true }));
  registry = stack.use(await startTestRegistry());
  platform = stack.use(await startPlatform({ guestDir }));
});

after(() => stack.disposeAsync());

test("busybox", { skip }, async () => {
  const tree = busyboxTree(join(scratch, "busybox"), "cat /proc/1/comm; ls /; stat -c '%a %u:%g' /bin/busybox");
  const { page } = await serve("busybox", [layerOf(tree, `${tree}.tar`)], httpd);
  assert.match(page, /^(?:.*\n)*bin\n(?:.*\n)*srv\n/, "the image's own tree is the guest's root");
  assert.match(page, /^755 0:0$/m);
});

test("a Debian tree made by mmdebstrap: every file is what its package says", { skip }, async () => {
  const base = join(scratch, "debian.tar");
  // dpkg-statoverride, documents and locales stay: dpkg --verify compares the digest of each file.
  run("mmdebstrap", ["--variant=minbase", "--quiet", "bookworm", base]);
  const app = join(scratch, "debian-app");
  writeInto(app, "srv/serve.pl", perlServer, 0o755);
  const data = join(scratch, "debian-data");
  const content = randomBytes(5_000_001);
  writeInto(data, "srv/data", content);
  const config = { entrypoint: ["/usr/bin/perl", "/srv/serve.pl"], port: 8080 };
  const layers = [base, layerOf(data, `${data}.tar`), layerOf(app, `${app}.tar`)];
  const { page, drives } = await serve("debian", layers, config);
  const facts = JSON.parse(page) as {
    readonly installed: number;
    readonly changed: string;
    readonly su: string;
    readonly links: number;
    readonly version: string;
    readonly data: string;
  };
  assert.deepEqual(
    drives.filter(({ serial }) => serial.startsWith("base")),
    ["base", "base.1", "base.2"].map((serial) => ({ serial, file: `../assets/${serial.replace("base", "rootfs")}` })),
    "the two large layers are drives of their own",
  );
  assert.equal(facts.data, createHash("sha256").update(content).digest("hex"));
  const listed = run("tar", ["--extract", "--to-stdout", "--file", base, "./var/lib/dpkg/status"]);
  assert.equal(facts.installed, listed.match(/^Status: install ok installed$/gm)?.length);
  assert.equal(facts.changed, "", "dpkg --verify finds nothing missing and nothing changed");
  assert.equal(facts.su, "4755 0:0", "a setuid program of the distribution keeps its mode");
  assert.match(facts.version, /^12\./);
  assert.ok(facts.links > 1, "perl and its versioned name are one file");
});

test("an image that names an account which is not root", { skip }, async () => {
  const tree = busyboxTree(join(scratch, "non-root"), "id");
  const { page } = await serve("non-root", [layerOf(tree, `${tree}.tar`)], { ...httpd, user: "web" });
  assert.match(page, /^uid=1000\(web\) gid=1000\(web\) groups=(?:1000\(web\),)?1001\(logs\)$/m);
});

test("an image without a shell", { skip }, async () => {
  const tree = join(scratch, "no-shell");
  copyInto(tree, busyboxPath, "httpd"); // the program's name chooses the applet: nothing else can be run
  writeInto(tree, "www/index.html", "no shell here\n");
  const config = { entrypoint: ["/httpd", "-f", "-p", "8080", "-h", "/www"], port: 8080 };
  const { page } = await serve("no-shell", [layerOf(tree, `${tree}.tar`)], config);
  assert.equal(page, "no shell here\n");
});

test("zstd layers", { skip }, async () => {
  const lower = busyboxTree(join(scratch, "zstd"), "cat /srv/which");
  const upper = join(scratch, "zstd-upper");
  writeInto(lower, "srv/which", "the lower layer\n");
  writeInto(upper, "srv/which", "the upper layer\n");
  const layers = [layerOf(lower, `${lower}.tar`), layerOf(upper, `${upper}.tar`)];
  const { page } = await serve("zstd", layers, httpd, "zstd");
  assert.equal(page, "the upper layer\n");
  const types = manifestOf(`${registry.host}/zstd:1`).layers.map(({ mediaType }) => mediaType);
  assert.deepEqual(types, Array(2).fill("application/vnd.oci.image.layer.v1.tar+zstd"));
});

test("file capabilities work inside the guest", { skip }, async () => {
  const script = "id -u; /bin/cat /etc/locked 2>&1; /bin/capable/cat /etc/locked";
  const tree = busyboxTree(join(scratch, "capable"), script);
  writeInto(tree, "etc/locked", "read past its mode\n", 0o600);
  run("setcap", ["cap_dac_read_search+ep", copyInto(tree, busyboxPath, "bin/capable/cat")]);
  const { page } = await serve("capable", [layerOf(tree, `${tree}.tar`)], { ...httpd, user: "web" });
  const denied = "cat: can't open '/etc/locked': Permission denied";
  assert.equal(page, `1000\n${denied}\nread past its mode\n`);
});

/** Deploys an image, answers what its first page says and which drives its VM has, and removes the app to make room for the next. */
async function serve(
  app: string,
  layers: readonly string[],
  config: RunConfig,
  compression: "gzip" | "zstd" = "gzip",
): Promise<{ readonly page: string; readonly drives: ReturnType<typeof drivesOf> }> {
  const layout = join(scratch, `${app}-layout`);
  layoutOf(layout, layers, config);
  const reference = `${registry.host}/${app}:1`;
  push(layout, reference, compression);
  const deployment = await deployAndWait(platform, { app, image: { reference } });
  assert.equal(deployment.state, "DEPLOYMENT_STATE_SUCCEEDED", JSON.stringify(deployment.failure));
  const { url } = await getJson<{ url: string }>(platform, `/v1/apps/${app}`);
  const answer = await visit(
    platform,
    url,
    config.entrypoint[0]?.startsWith("/bin/") === true ? "/cgi-bin/index.cgi" : "/",
  );
  assert.equal(answer.status, 200, answer.body);
  const drives = drivesOf(deployment.vmIds[0] ?? "");
  assert.equal((await callApi(platform, "DELETE", `/v1/apps/${app}`)).status, 200);
  return { page: answer.body, drives };
}

/** Answers every request with what dpkg and stat(2) say; perl-base is the only server in a minimal Debian. */
const perlServer = String.raw`
use strict; use warnings; use Socket;
$ENV{PATH} = "/usr/sbin:/usr/bin:/sbin:/bin";
socket(my $listener, PF_INET, SOCK_STREAM, 0) or die "socket: $!";
setsockopt($listener, SOL_SOCKET, SO_REUSEADDR, 1);
bind($listener, sockaddr_in(8080, INADDR_ANY)) or die "bind: $!";
listen($listener, 16) or die "listen: $!";
while (accept(my $client, $listener)) {
  my $request = <$client>;
  next unless defined $request;
  while (my $line = <$client>) { last if $line =~ /^\r?\n$/ }
  my $body = "ready";
  if ($request =~ m{^GET / }) {
    my $installed = () = qx(dpkg-query -W -f '\${db:Status-Abbrev}\n') =~ /^ii/mg;
    my $changed = qx(dpkg --verify 2>&1); $changed =~ s/\n/;/g;
    my @su = stat("/usr/bin/su"); my @perl = stat("/usr/bin/perl");
    my $su = sprintf("%o %d:%d", $su[2] & 07777, $su[4], $su[5]);
    open(my $file, "<", "/etc/debian_version"); my $version = <$file>; chomp $version;
    my ($data) = split " ", qx(sha256sum /srv/data);
    $body = qq({"installed":$installed,"changed":"$changed","su":"$su","links":$perl[3],"version":"$version","data":"$data"});
  }
  print $client "HTTP/1.1 200 OK\r\ncontent-type: text/plain\r\nconnection: close\r\ncontent-length: " . length($body) . "\r\n\r\n" . $body;
  close $client;
}
`;
