export { frugalMalloc, frugalNode } from "./daemon-process.ts";
export { drainHost } from "./drain.ts";
export { openHome } from "./home.ts";
export { unkeyPlatform } from "./platform.ts";
