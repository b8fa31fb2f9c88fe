import { records } from "./fields.ts";
import { type DeclaredPackage, UnreadableFile } from "./package-list.ts";

/** dpkg's states of packages whose files are not there (dpkg-query(1)). */
const absent = new Set(["not-installed", "config-files"]);

/**
 * dpkg's status database (deb822(5), dpkg(1)); also a file of `status.d`, which has no Status because what it describes is
 * always installed.
 */
export function* readDpkgStatus(bytes: Buffer): Generator<DeclaredPackage> {
  for (const record of records(bytes, ["Package", "Status", "Version", "Architecture"], ":")) {
    const [, , state = "installed"] = record.get("Status")?.split(" ") ?? [];
    if (absent.has(state)) continue;
    yield {
      name: record.get("Package") ?? "",
      version: record.get("Version") ?? "",
      architecture: record.get("Architecture") ?? "",
    };
  }
}

/** apk's database of installed packages: https://wiki.alpinelinux.org/wiki/Apk_spec#Installed_Database_V2 */
export function* readApkInstalled(bytes: Buffer): Generator<DeclaredPackage> {
  for (const record of records(bytes, ["P", "V", "A", "L"], ":")) {
    yield {
      name: record.get("P") ?? "",
      version: record.get("V") ?? "",
      architecture: record.get("A") ?? "",
      license: record.get("L") ?? "",
    };
  }
}

/** https://packaging.python.org/en/latest/specifications/core-metadata/: the headers, not the description below them. */
export function* readPythonMetadata(bytes: Buffer): Generator<DeclaredPackage> {
  for (const record of records(bytes, ["Name", "Version", "License-Expression", "License"], ":")) {
    const license = record.get("License-Expression") ?? record.get("License") ?? "";
    yield {
      name: record.get("Name") ?? "",
      version: record.get("Version") ?? "",
      license: license === "UNKNOWN" ? "" : license,
    };
    return;
  }
  throw new UnreadableFile("it is empty");
}

/** https://docs.npmjs.com/cli/configuring-npm/package-json */
export function* readPackageJson(bytes: Buffer): Generator<DeclaredPackage> {
  let json: unknown;
  try {
    json = JSON.parse(bytes.toString("utf8").replace(/^\uFEFF/, ""));
  } catch {
    throw new UnreadableFile("it is not JSON");
  }
  if (typeof json !== "object" || json === null) throw new UnreadableFile("it is not a JSON object");
  const { name, version, license } = json as Record<string, unknown>;
  const type = typeof license === "object" && license !== null ? (license as Record<string, unknown>)["type"] : license;
  yield { name: text(name), version: text(version), license: text(type) };
}

function text(value: unknown): string {
  return typeof value === "string" ? value : "";
}
