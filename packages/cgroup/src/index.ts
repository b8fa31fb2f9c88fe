export { type CgroupLimits, type CounterFiles, LinuxCgroups } from "./linux-cgroups.ts";
