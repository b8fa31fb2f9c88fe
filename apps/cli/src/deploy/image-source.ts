import { closeSync, existsSync, openSync, readSync, statSync } from "node:fs";
import { join, resolve } from "node:path";
import { isErrno } from "@unkey/base";
import { CliFailure, exitCodes, usageFailure } from "../failure.ts";

/** What `unkey deploy` was given. */
export type ImageSource =
  | { readonly kind: "reference"; readonly reference: string }
  /** `name` is told in place of the path's own. */
  | { readonly kind: "archive"; readonly path: string; readonly name?: string }
  | { readonly kind: "layout"; readonly path: string }
  /** A directory to build an image from. */
  | { readonly kind: "dockerfile"; readonly path: string; readonly dockerfile: string };

/** What can be uploaded as it is. */
export type LocalImage = Extract<ImageSource, { kind: "archive" | "layout" }>;

/**
 * `file` is the Dockerfile of a directory to be built. A path that exists is meant as a path; what only looks like one and does not exist is a mistake; anything else is a
 * reference in a registry.
 */
export function imageSource(argument: string, cwd: string, file?: string): ImageSource {
  const path = resolve(cwd, argument);
  const stat = statOf(path);
  if (stat?.isDirectory()) return directory(argument, path, file === undefined ? undefined : resolve(cwd, file));
  if (stat?.isFile()) return archive(argument, path);
  if (stat !== undefined) {
    throw usageFailure(
      `${argument} is neither a file nor a directory`,
      "Name an image, an image archive, or a directory with a Dockerfile or an OCI layout.",
    );
  }
  if (/^(?:\.{0,2}\/|~)|\.(?:tar|tgz|gz|zst)$/.test(argument)) {
    throw new CliFailure(`${argument} does not exist`, {
      nextStep: "Check the path; an image in a registry is written like registry.example/app:tag.",
      exitCode: exitCodes.notFound,
    });
  }
  if (/\s/.test(argument) || argument === "") {
    throw usageFailure(`"${argument}" is no image reference`, "Write it like registry.example/app:tag.");
  }
  return { kind: "reference", reference: argument };
}

function statOf(path: string) {
  try {
    return statSync(path, { throwIfNoEntry: false });
  } catch (error) {
    if (isErrno(error, "ENAMETOOLONG")) return undefined; // no path; the platform says what it thinks of the name
    throw error;
  }
}

/** A layout is an image already, so it is not built, unless a Dockerfile is named. */
function directory(argument: string, path: string, file: string | undefined): ImageSource {
  if (file !== undefined) {
    if (isFile(file)) return { kind: "dockerfile", path, dockerfile: file };
    throw new CliFailure(`--file: ${file} is not a file`, {
      nextStep: "Name the Dockerfile; its path counts from here, not from the directory that is built.",
      exitCode: exitCodes.notFound,
    });
  }
  if (existsSync(join(path, "oci-layout")) && existsSync(join(path, "index.json"))) return { kind: "layout", path };
  const dockerfile = ["Dockerfile", "Containerfile"].map((name) => join(path, name)).find(isFile);
  if (dockerfile !== undefined) return { kind: "dockerfile", path, dockerfile };
  const advice = /^[a-z0-9][a-z0-9._-]*$/.test(argument)
    ? ` For the image of that name in a registry write docker.io/library/${argument}.`
    : "";
  throw usageFailure(
    `${argument} has no Dockerfile to build and is no OCI layout (no oci-layout and index.json in it)`,
    `Write a Dockerfile there, name one elsewhere with --file, or name another image.${advice}`,
  );
}

function isFile(path: string): boolean {
  return statSync(path, { throwIfNoEntry: false })?.isFile() === true;
}

function archive(argument: string, path: string): ImageSource {
  const head = Buffer.alloc(512);
  const fd = openSync(path, "r");
  try {
    readSync(fd, head, 0, head.length, 0);
  } finally {
    closeSync(fd);
  }
  // POSIX.1-1988 and GNU tar alike carry "ustar" at 257 (tar(5)); what gzip and zstd hide is looked at by the platform.
  const isTar = head.toString("latin1", 257, 262) === "ustar";
  const isCompressed = head.readUInt16BE(0) === 0x1f8b || head.readUInt32BE(0) === 0x28b52ffd;
  if (isTar || isCompressed) return { kind: "archive", path };
  throw usageFailure(
    `${argument} is not a tar archive`,
    "Name an archive as `docker save -o app.tar <image>` or `skopeo copy … oci-archive:app.tar` makes it, or a directory with a Dockerfile.",
  );
}
