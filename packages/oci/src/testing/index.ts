export { busyboxPath, type HelloImageOptions, helloImage, needsBusybox } from "./hello-image.ts";
export {
  needsRegistry,
  type PushOptions,
  pushBlob,
  pushLayout,
  pushManifest,
  startTestRegistry,
  type TestRegistry,
  type TestRegistryOptions,
  testLogin,
} from "./test-registry.ts";
