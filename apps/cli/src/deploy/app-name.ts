import { basename } from "node:path";
import { ServiceError } from "@unkey/base";

/** An app's name is a label of its host name; the API has the same rule. Refused here before an image is uploaded. */
export function appName(input: string): string {
  if (/^[a-z](?:[a-z0-9-]{0,61}[a-z0-9])?$/.test(input)) return input;
  throw new ServiceError(
    "INVALID_REQUEST",
    `--app: "${input}" is not an app's name; write at most 63 of a-z, 0-9 and dashes, a letter first and no dash last`,
  );
}

/** The name of an app that is built from a directory: the directory's own, as far as it can be one; undefined otherwise. */
export function appNameOfDirectory(path: string): string | undefined {
  const label = basename(path)
    .toLowerCase()
    .replaceAll(/[^a-z0-9]+/g, "-")
    .replace(/^[^a-z]+/, "")
    .slice(0, 63)
    .replace(/-+$/, "");
  return label === "" ? undefined : label;
}
