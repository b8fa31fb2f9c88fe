export { openHome } from "./home.ts";
export { unkeyPlatform } from "./platform.ts";
