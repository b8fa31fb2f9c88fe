import { basename } from "node:path";
import { type Clock, formatBytes } from "@unkey/base";
import type { Gateway } from "../connection/gateway.ts";
import type { Step } from "../render/step-list.ts";
import type { LocalImage } from "./image-source.ts";
import { archiveBody, layoutBody } from "./layout-archive.ts";

export interface Upload {
  readonly uploadId: string;
  readonly step: Step;
}

/** Of the contract. */
const maxNameLength = 255;

/** Sends a local image under its file's name; an upload that breaks off is begun again, because half an archive is none. */
export async function uploadImage(
  gateway: Gateway,
  source: LocalImage,
  clock: Clock,
  onProgress: (step: Step) => void,
): Promise<Upload> {
  const body = source.kind === "layout" ? layoutBody(source.path) : archiveBody(source.path);
  const startedAtMs = clock.nowMs();
  const step = (state: Step["state"], detail: string): Step => ({
    name: "upload",
    state,
    startedAtMs,
    endedAtMs: state === "running" ? 0 : clock.nowMs(),
    detail,
  });
  const total = formatBytes(body.sizeBytes);
  onProgress(step("running", total));
  try {
    const upload = await gateway.call(({ signal }) => {
      let sentBytes = 0;
      async function* chunks() {
        yield {
          name: nameOf(source)
            .replace(/\p{Cc}/gu, "?")
            .slice(0, maxNameLength),
        };
        for await (const chunk of body.pieces()) {
          sentBytes += chunk.length;
          onProgress(step("running", `${formatBytes(sentBytes)} of ${total}`));
          yield { chunk };
        }
      }
      return gateway.client.uploadImage(chunks(), { signal });
    });
    const done = step("done", `${formatBytes(upload.sizeBytes)}, ${upload.digest}`);
    onProgress(done);
    return { uploadId: upload.uploadId, step: done };
  } catch (error) {
    onProgress(step("failed", total));
    throw error;
  }
}

function nameOf(source: LocalImage): string {
  const given = source.kind === "archive" ? source.name : undefined;
  return given ?? basename(source.path);
}
