import { randomUUID } from "node:crypto";
import { open, rename, rm } from "node:fs/promises";
import { resolve } from "node:path";
import { formatBytes, isErrno, mib } from "@unkey/base";
import type { ApiFlags } from "../../command.ts";
import type { Gateway } from "../../connection/gateway.ts";
import { openGateway } from "../../connection/open.ts";
import type { CliContext } from "../../context.ts";
import { CliFailure } from "../../failure.ts";
import { escapeControls } from "../../render/terminal.ts";

type DocumentFlags = ApiFlags & { readonly output?: string };

/** The platform hands out no longer ones. */
const maxDocumentBytes = 96 * mib;

/** Prints the package list of a build's root filesystem (SPDX 2.3 as JSON), byte for byte. */
export function printSbom(context: CliContext, flags: DocumentFlags, buildId: string): Promise<void> {
  return printDocument(context, flags, (gateway) =>
    gateway.stream((signal) => gateway.client.downloadBuildSbom({ buildId }, { signal })),
  );
}

/** Prints the DSSE envelope of a build's provenance, byte for byte. */
export function printProvenance(context: CliContext, flags: DocumentFlags, buildId: string): Promise<void> {
  return printDocument(context, flags, (gateway) =>
    gateway.stream((signal) => gateway.client.downloadBuildProvenance({ buildId }, { signal })),
  );
}

type Chunks = AsyncIterable<{ readonly chunk: Uint8Array }>;

async function printDocument(
  context: CliContext,
  flags: DocumentFlags,
  download: (gateway: Gateway) => Chunks,
): Promise<void> {
  using gateway = openGateway(context, flags);
  const chunks = bounded(download(gateway));
  if (flags.output !== undefined) await saveTo(resolve(context.cwd, flags.output), chunks);
  else if (context.out.live) await show(context, chunks);
  else for await (const chunk of chunks) context.out.write(chunk);
}

async function* bounded(chunks: Chunks): AsyncGenerator<Uint8Array> {
  let bytes = 0;
  for await (const { chunk } of chunks) {
    bytes += chunk.length;
    if (bytes > maxDocumentBytes) {
      throw new CliFailure(`the document is longer than ${formatBytes(maxDocumentBytes)}`, {
        nextStep: "Check with `unkey config` that this is the platform that you mean.",
      });
    }
    yield chunk;
  }
}

/** The same document, though not the same bytes, where a terminal would obey some of them. */
async function show({ out }: CliContext, chunks: AsyncIterable<Uint8Array>): Promise<void> {
  const decoder = new TextDecoder();
  for await (const chunk of chunks) out.write(escapeControls(decoder.decode(chunk, { stream: true })));
  out.write(`${escapeControls(decoder.decode())}\n`);
}

/** The file appears when it is complete, in place of an earlier one. */
async function saveTo(path: string, chunks: AsyncIterable<Uint8Array>): Promise<void> {
  const partial = `${path}.${randomUUID()}.partial`;
  try {
    await using file = await open(partial, "wx");
    for await (const chunk of chunks) await file.writeFile(chunk);
    await rename(partial, path);
  } catch (error) {
    await rm(partial, { force: true });
    if (!isErrno(error, "ENOENT", "ENOTDIR", "EISDIR", "EACCES", "EPERM", "EROFS")) throw error;
    throw new CliFailure(`--output: ${path} cannot be written (${error.code})`, {
      nextStep: "Name a file in a directory that exists and that you may write to.",
      cause: error,
    });
  }
}
