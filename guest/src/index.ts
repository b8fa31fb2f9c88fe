export { ensureGuestAssets, type GuestAssets, type GuestAssetsOptions, isStaticElf } from "./guest-assets.ts";
export { type Bytes, type GuestApp, type GuestNetwork, type GuestSpec, renderGuestConfig } from "./guest-config.ts";
