/** What a binary runs on, as OCI spells it (Go's GOOS and GOARCH). */
export interface Platform {
  readonly os: string;
  readonly architecture: string;
  /** `v7`, `v8` and the like; empty when not said. */
  readonly variant: string;
}

const architectures: Readonly<Record<string, string>> = { x64: "amd64", arm64: "arm64" };

/** The platform of guests on this host. */
export function hostPlatform(): Platform {
  return { os: "linux", architecture: architectures[process.arch] ?? process.arch, variant: "" };
}

/** `linux/amd64`, `linux/arm/v7`. */
export function formatPlatform(platform: Platform): string {
  return `${platform.os}/${platform.architecture}${platform.variant === "" ? "" : `/${platform.variant}`}`;
}

/** True when an image for `offered` runs where `wanted` is asked for. arm64 has one variant in use, v8, often left out. */
export function platformFits(offered: Platform, wanted: Platform): boolean {
  const variant = (platform: Platform): string =>
    platform.architecture === "arm64" && platform.variant === "v8" ? "" : platform.variant;
  return (
    offered.os === wanted.os && offered.architecture === wanted.architecture && variant(offered) === variant(wanted)
  );
}
