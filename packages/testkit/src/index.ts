export { DevPlatform, until } from "./dev-platform.ts";
export { type Platform, type PlatformOptions, startPlatform } from "./start-platform.ts";
