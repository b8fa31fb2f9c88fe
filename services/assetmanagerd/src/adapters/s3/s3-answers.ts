/*
 * What an S3 server says in XML. Its answers are flat and made by a program, so the few elements that are needed are read by
 * name; a body that is not of that kind yields nothing and so an error of the caller.
 * Source: Amazon S3 API reference, "Error responses", ListObjectsV2, CreateMultipartUpload, ListMultipartUploads.
 */

/** Text of the first element of that name; undefined when there is none. */
export function textOf(xml: string, name: string): string | undefined {
  return textsOf(xml, name)[0];
}

/** Text of every element of that name, in order. */
export function textsOf(xml: string, name: string): string[] {
  return [...xml.matchAll(new RegExp(`<${name}>([^<]*)</${name}>`, "g"))].map((match) => decoded(match[1] ?? ""));
}

/** Body of every element of that name that holds elements, in order. Each character is looked at once, whatever the server sends. */
export function elementsOf(xml: string, name: string): string[] {
  const [open, close] = [`<${name}>`, `</${name}>`];
  const found: string[] = [];
  for (let at = xml.indexOf(open); at >= 0; ) {
    const end = xml.indexOf(close, at);
    if (end < 0) break;
    found.push(xml.slice(at + open.length, end));
    at = xml.indexOf(open, end);
  }
  return found;
}

const entities: Readonly<Record<string, string>> = { amp: "&", lt: "<", gt: ">", quot: '"', apos: "'" };

function decoded(text: string): string {
  return text.replace(/&(?:#x([0-9a-f]{1,6})|#([0-9]{1,7})|([a-z]+));/gi, (whole, hex, decimal, name) => {
    if (typeof name === "string") return entities[name] ?? whole;
    const code = typeof hex === "string" ? Number.parseInt(hex, 16) : Number(decimal);
    return code <= 0x10ffff ? String.fromCodePoint(code) : whole;
  });
}

/** One part of a multipart upload, by its number from 1. */
export interface UploadedPart {
  readonly number: number;
  readonly etag: string;
}

/** Body of CompleteMultipartUpload. */
export function completionOf(parts: readonly UploadedPart[]): string {
  const listed = parts.map(
    ({ number, etag }) => `<Part><PartNumber>${number}</PartNumber><ETag>${encoded(etag)}</ETag></Part>`,
  );
  return `<CompleteMultipartUpload>${listed.join("")}</CompleteMultipartUpload>`;
}

function encoded(text: string): string {
  return text.replaceAll("&", "&amp;").replaceAll("<", "&lt;").replaceAll(">", "&gt;");
}
