import type { Deployment } from "@unkey/api/gateway";
import { plain } from "./terminal.ts";

/** The image of a deployment as it was asked for; of one that was pushed to the platform, what that meant. */
export function imageText({ image, pushedImage }: Pick<Deployment, "image" | "pushedImage">): string {
  if (pushedImage === "") return plain(image);
  const digest = pushedImage.slice(pushedImage.indexOf("@"));
  return plain(`pushed ${image.replace(/@.*$/, "")} ${digest}`);
}
