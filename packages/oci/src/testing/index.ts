export { busyboxPath, busyboxTree, type HelloImageOptions, helloImage, needsBusybox } from "./hello-image.ts";
