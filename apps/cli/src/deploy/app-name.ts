import { isAppName, ServiceError } from "@unkey/base";

/** The API has the same rule; refused here before an image is uploaded. */
export function appName(input: string): string {
  if (isAppName(input)) return input;
  throw new ServiceError(
    "INVALID_REQUEST",
    `--app: "${input}" is not an app's name; write at most 63 of a-z, 0-9 and dashes, a letter first and no dash last`,
  );
}
