import { monitorEventLoopDelay } from "node:perf_hooks";
import type { Metrics } from "./metrics.ts";

/** Registers what the process itself costs; disposal stops the event-loop monitor. */
export function collectProcessMetrics(metrics: Metrics): Disposable {
  const rss = metrics.gauge("process_resident_memory_bytes", "Resident memory of the process.");
  const heap = metrics.gauge("nodejs_heap_used_bytes", "JavaScript heap in use.");
  const cpu = metrics.gauge("process_cpu_seconds_total", "User and system CPU time spent.");
  const delay = metrics.gauge("nodejs_eventloop_delay_seconds", "Event-loop delay since the last scrape.");
  // 100 ms: finer would wake an idle daemon more often than all of its own work does.
  const resolutionMs = 100;
  const loop = monitorEventLoopDelay({ resolution: resolutionMs });
  loop.enable();
  metrics.onCollect(() => {
    rss.set(process.memoryUsage.rss());
    heap.set(process.memoryUsage().heapUsed);
    const { user, system } = process.cpuUsage();
    cpu.set((user + system) / 1e6);
    for (const quantile of [0.5, 0.99, 1]) {
      const ns = loop.count === 0 ? 0 : Math.max(0, loop.percentile(quantile * 100) - resolutionMs * 1e6);
      delay.set(ns / 1e9, { quantile: String(quantile) });
    }
    loop.reset();
  });
  return { [Symbol.dispose]: () => void loop.disable() };
}
