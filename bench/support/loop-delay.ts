/** Preloaded into a daemon under test: answers "read" over IPC with the longest event-loop pause in ms since the last "read". */
import { monitorEventLoopDelay } from "node:perf_hooks";

const resolutionMs = 1;
const delay = monitorEventLoopDelay({ resolution: resolutionMs });
delay.enable();
process.on("message", () => {
  process.send?.(Math.max(0, delay.max / 1e6 - resolutionMs));
  delay.reset();
});
process.channel?.unref();
