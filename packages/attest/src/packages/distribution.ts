/** What /etc/os-release says of the tree, as far as a purl names it. */
export interface Distribution {
  /** Such as "debian"; empty when the tree does not say. */
  readonly id: string;
  /** Such as "debian-12"; empty likewise. */
  readonly release: string;
}

const idPattern = /^[a-z0-9._-]{1,64}$/;

/** https://www.freedesktop.org/software/systemd/man/os-release.html */
export function readOsRelease(bytes: Buffer | undefined): Distribution {
  const value = (name: string): string => {
    const line = new RegExp(`^${name}=(["']?)(.*)\\1\\s*$`, "m").exec(bytes?.toString("utf8") ?? "");
    const text = line?.[2]?.toLowerCase() ?? "";
    return idPattern.test(text) ? text : "";
  };
  const id = value("ID");
  const version = value("VERSION_ID");
  return { id, release: id === "" || version === "" ? "" : `${id}-${version}` };
}
