import { createHash } from "node:crypto";
import type { Package, PackageList } from "./packages/package-list.ts";

/* SPDX 2.3 as JSON: https://spdx.github.io/spdx-spec/v2.3/ */

export interface SbomSubject {
  /** Of the build; the same build gives the same document. */
  readonly buildId: string;
  readonly createdAtMs: number;
  /** What was converted, for people. */
  readonly imageName: string;
  readonly manifestDigest: string;
  /** sha256:<hex> of the root filesystem. */
  readonly rootfsDigest: string;
  /** Who made the list, such as "unkey-builderd-0.1.0". */
  readonly tool: string;
}

const rootId = "SPDXRef-rootfs";
const unknown = "NOASSERTION";

/**
 * The document. What a database declares is written down as declared: licenses are comments, because few of them are SPDX
 * expressions; nothing is concluded. Files that were found and not read are annotations of the root.
 */
export function spdxDocument(subject: SbomSubject, list: PackageList): Buffer {
  const { buildId, imageName, manifestDigest, rootfsDigest, tool } = subject;
  const created = new Date(subject.createdAtMs).toISOString().replace(/\.\d{3}Z$/, "Z");
  const annotation = (comment: string) => ({
    annotationDate: created,
    annotationType: "OTHER",
    annotator: `Tool: ${tool}`,
    comment,
  });
  const unread = list.unread.map(({ path, problem }) => annotation(`found, not read: ${path}: ${problem}`));
  if (list.unreadOmitted > 0) unread.push(annotation(`found, not read: ${list.unreadOmitted} more files`));
  const found = list.packages.map((each) => ({ id: idOf(each), each }));
  return Buffer.from(
    JSON.stringify({
      spdxVersion: "SPDX-2.3",
      dataLicense: "CC0-1.0",
      SPDXID: "SPDXRef-DOCUMENT",
      name: imageName,
      documentNamespace: `tag:unkey.com,2026:deploy/sbom/${buildId}/${hexOf(rootfsDigest)}`,
      creationInfo: { created, creators: [`Tool: ${tool}`] },
      packages: [
        {
          SPDXID: rootId,
          name: imageName,
          versionInfo: manifestDigest,
          downloadLocation: unknown,
          filesAnalyzed: false,
          checksums: [{ algorithm: "SHA256", checksumValue: hexOf(rootfsDigest) }],
          primaryPackagePurpose: "CONTAINER",
          ...(unread.length > 0 ? { annotations: unread } : {}),
        },
        ...found.map(({ id, each }) => packageElement(id, each)),
      ],
      relationships: [
        { spdxElementId: "SPDXRef-DOCUMENT", relationshipType: "DESCRIBES", relatedSpdxElement: rootId },
        ...found.map(({ id }) => ({ spdxElementId: rootId, relationshipType: "CONTAINS", relatedSpdxElement: id })),
      ],
    }),
  );
}

function packageElement(id: string, { name, version, license, purl, foundIn }: Package) {
  return {
    SPDXID: id,
    name,
    versionInfo: version,
    downloadLocation: unknown,
    filesAnalyzed: false,
    licenseConcluded: unknown,
    licenseDeclared: unknown,
    ...(license === "" ? {} : { licenseComments: `declared as: ${license}` }),
    copyrightText: unknown,
    sourceInfo: `found in ${foundIn}`,
    externalRefs: [{ referenceCategory: "PACKAGE-MANAGER", referenceType: "purl", referenceLocator: purl }],
  };
}

/** The same package in the same file has the same id in every document. */
function idOf({ purl, foundIn }: Package): string {
  return `SPDXRef-${createHash("sha256").update(`${purl}\n${foundIn}`).digest("hex").slice(0, 32)}`;
}

function hexOf(digest: string): string {
  return digest.replace(/^sha256:/, "");
}
