import { fromUtf8 } from "../byte-string.ts";
import { encodePax } from "../tar/pax-records.ts";
import { type TarHeader, tarEnd, tarHeader, tarPadding } from "../tar/tar-writer.ts";

/** One entry of a test archive: what is left out gets a plain value. */
export type TarFixture = Partial<TarHeader> & { readonly name: string; readonly content?: string | Buffer };

/** An entry's header, content and padding. `edit` changes the header, whose checksum is set again. */
export function tarEntry({ content = "", ...entry }: TarFixture, edit?: (header: Buffer) => void): Buffer {
  const body = Buffer.from(content);
  const header = tarHeader({
    type: "file",
    linkName: "",
    mode: entry.type === "directory" ? 0o755 : 0o644,
    uid: 0,
    gid: 0,
    mtimeNs: 1_700_000_000_000_000_000n,
    deviceMajor: 0,
    deviceMinor: 0,
    xattrs: new Map(),
    sizeBytes: body.length,
    ...entry,
    name: fromUtf8(entry.name),
  });
  if (edit !== undefined) {
    edit(header.subarray(-512)); // behind its PAX header, if it has one
    setChecksum(header.subarray(-512));
  }
  return Buffer.concat([header, body, tarPadding(body.length)]);
}

/** An entry behind a PAX header of `records`, of which there may be several with one key. */
export function paxEntry(
  records: readonly (readonly [key: string, value: string | Buffer])[],
  entry: TarFixture,
  edit?: (header: Buffer) => void,
): Buffer {
  const body = encodePax(records.map(([key, value]) => [fromUtf8(key), Buffer.from(value)] as const));
  return Buffer.concat([paxHeader(body), tarEntry(entry, edit)]);
}

/** An extended header with any body. */
export function paxHeader(body: string | Buffer, typeflag = "x"): Buffer {
  return tarEntry({ name: "PaxHeaders/entry", content: body }, (header) => header.write(typeflag, 156));
}

/** Makes a header block valid again after a change. */
export function setChecksum(header: Buffer): void {
  header.fill(0x20, 148, 156);
  const sum = header.reduce((total, byte) => total + byte, 0);
  header.write(`${sum.toString(8).padStart(6, "0")}\0 `, 148);
}

/** A tar archive of `entries`, exactly as they are: hostile ones included. */
export function tarOf(entries: readonly (TarFixture | Buffer)[]): Buffer {
  return Buffer.concat([...entries.map((entry) => (Buffer.isBuffer(entry) ? entry : tarEntry(entry))), tarEnd()]);
}
