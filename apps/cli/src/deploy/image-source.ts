import { closeSync, existsSync, openSync, readSync, statSync } from "node:fs";
import { basename, join, resolve } from "node:path";
import { CliFailure, exitCodes, usageFailure } from "../failure.ts";

/** What `unkey deploy` was given. */
export type ImageSource =
  | { readonly kind: "reference"; readonly reference: string }
  | { readonly kind: "archive"; readonly path: string }
  | { readonly kind: "layout"; readonly path: string };

/**
 * A path that exists is meant as a path; what only looks like one and does not exist is a mistake; anything else is a
 * reference in a registry.
 */
export function imageSource(argument: string, cwd: string): ImageSource {
  const path = resolve(cwd, argument);
  const stat = statSync(path, { throwIfNoEntry: false });
  if (stat?.isDirectory()) return layoutDirectory(argument, path);
  if (stat?.isFile()) return archive(argument, path);
  if (stat !== undefined) {
    throw usageFailure(
      `${argument} is neither a file nor a directory`,
      "Name an image, an OCI archive or an OCI layout.",
    );
  }
  if (/^(?:\.{0,2}\/|~)|\.(?:tar|tgz|gz)$/.test(argument)) {
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

function layoutDirectory(argument: string, path: string): ImageSource {
  if (existsSync(join(path, "oci-layout")) && existsSync(join(path, "index.json"))) return { kind: "layout", path };
  if (existsSync(join(path, "Dockerfile")) || existsSync(join(path, "Containerfile"))) {
    const archiveName = `${basename(path)}.tar`;
    throw usageFailure(
      `${argument} has a Dockerfile but no OCI layout, and images are not built here`,
      `Make one: docker buildx build --output type=oci,dest=${archiveName} ${argument} && unkey deploy ${archiveName} --app <name>`,
    );
  }
  const advice = /^[a-z0-9][a-z0-9._-]*$/.test(argument)
    ? ` For the image of that name in a registry write docker.io/library/${argument}.`
    : "";
  throw usageFailure(
    `${argument} is a directory without an OCI layout (no oci-layout and index.json in it)`,
    `Make one: skopeo copy docker://<image> oci:${argument}:latest.${advice}`,
  );
}

function archive(argument: string, path: string): ImageSource {
  const head = Buffer.alloc(512);
  const fd = openSync(path, "r");
  try {
    readSync(fd, head, 0, head.length, 0);
  } finally {
    closeSync(fd);
  }
  // POSIX.1-1988 and GNU tar alike carry "ustar" at 257 (tar(5)).
  if (head.toString("latin1", 257, 262) === "ustar") return { kind: "archive", path };
  if (head[0] === 0x1f && head[1] === 0x8b) {
    throw usageFailure(`${argument} is compressed`, `Unpack it first: gunzip --keep ${argument}`);
  }
  throw usageFailure(
    `${argument} is not a tar archive`,
    "Name an OCI archive, as `docker buildx build --output type=oci,dest=app.tar .` makes it.",
  );
}
