/**
 * A small Prometheus registry. Format: https://prometheus.io/docs/instrumenting/exposition_formats/ (text, 0.0.4).
 * A metric keeps at most `maxSeries` label sets; what comes after is counted in `unkey_metrics_dropped_total`, so a
 * caller that puts hostile input into a label cannot exhaust memory.
 */
const maxSeries = 2000;

export type Labels = Readonly<Record<string, string>>;

export interface Counter {
  inc(labels?: Labels, by?: number): void;
}

export interface Gauge {
  set(value: number, labels?: Labels): void;
  add(by: number, labels?: Labels): void;
}

export interface Histogram {
  observe(value: number, labels?: Labels): void;
}

interface Metric {
  readonly help: string;
  readonly type: "counter" | "gauge" | "histogram";
  /** What the caller holds; a second registration of the name answers the same one. */
  readonly handle: unknown;
  render(lines: string[], name: string): void;
}

/** Seconds; from a cached read to a slow build step. */
export const latencyBucketsSeconds = [0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60];

export class Metrics {
  readonly #metrics = new Map<string, Metric>();
  readonly #collectors: (() => void)[] = [];
  #dropped = 0;

  /** A value that only grows; `name` ends in `_total`. */
  counter(name: string, help: string): Counter {
    return this.#once(name, "counter", help, () => {
      const series = this.#series();
      const handle: Counter = { inc: (labels = {}, by = 1) => series.update(labels, (old) => old + by) };
      return { handle, render: series.render };
    });
  }

  /** A value that moves both ways. */
  gauge(name: string, help: string): Gauge {
    return this.#once(name, "gauge", help, () => {
      const series = this.#series();
      const handle: Gauge = {
        set: (value, labels = {}) => series.update(labels, () => value),
        add: (by, labels = {}) => series.update(labels, (old) => old + by),
      };
      return { handle, render: series.render };
    });
  }

  /** A distribution over `buckets`, upper bounds in rising order. */
  histogram(name: string, help: string, buckets: readonly number[] = latencyBucketsSeconds): Histogram {
    return this.#once(name, "histogram", help, () => {
      const series = new Map<string, { readonly labels: Labels; readonly counts: number[]; sum: number }>();
      const handle: Histogram = {
        observe: (value, labels = {}) => {
          const key = renderLabels(labels);
          let entry = series.get(key);
          if (!entry) {
            if (series.size >= maxSeries) {
              this.#dropped++;
              return;
            }
            entry = { labels, counts: Array.from({ length: buckets.length + 1 }, () => 0), sum: 0 };
            series.set(key, entry);
          }
          const found = buckets.findIndex((bound) => value <= bound);
          const index = found === -1 ? buckets.length : found;
          entry.counts[index] = (entry.counts[index] ?? 0) + 1;
          entry.sum += value;
        },
      };
      const render = (lines: string[]) => {
        for (const { labels, counts, sum } of series.values()) {
          let cumulative = 0;
          for (const [index, count] of counts.entries()) {
            cumulative += count;
            const le = index < buckets.length ? String(buckets[index]) : "+Inf";
            lines.push(`${name}_bucket${renderLabels({ ...labels, le })} ${cumulative}`);
          }
          lines.push(`${name}_sum${renderLabels(labels)} ${sum}`, `${name}_count${renderLabels(labels)} ${cumulative}`);
        }
      };
      return { handle, render };
    });
  }

  /** Runs `collect` before each rendering, for values that are read rather than counted. */
  onCollect(collect: () => void): void {
    this.#collectors.push(collect);
  }

  /** The whole registry in Prometheus' text format. */
  render(): string {
    for (const collect of this.#collectors) collect();
    const lines: string[] = [];
    for (const [name, metric] of this.#metrics) {
      lines.push(`# HELP ${name} ${metric.help.replaceAll("\n", " ")}`, `# TYPE ${name} ${metric.type}`);
      metric.render(lines, name);
    }
    lines.push("# TYPE unkey_metrics_dropped_total counter", `unkey_metrics_dropped_total ${this.#dropped}`);
    return `${lines.join("\n")}\n`;
  }

  #series() {
    const values = new Map<string, number>();
    return {
      render: (lines: string[], name: string) => {
        for (const [key, value] of values) lines.push(`${name}${key} ${value}`);
      },
      update: (labels: Labels, change: (old: number) => number) => {
        const key = renderLabels(labels);
        const old = values.get(key);
        if (old === undefined && values.size >= maxSeries) this.#dropped++;
        else values.set(key, change(old ?? 0));
      },
    };
  }

  /** Several clients of a process count into one metric, so the second registration answers the first one's handle. */
  #once<T>(
    name: string,
    type: Metric["type"],
    help: string,
    make: () => { readonly handle: T; readonly render: Metric["render"] },
  ): T {
    const known = this.#metrics.get(name);
    if (known !== undefined && known.type !== type) throw new Error(`metric ${name} is already a ${known.type}`);
    if (known !== undefined) return known.handle as T;
    if (!/^[a-z][a-z0-9_]*$/.test(name)) throw new Error(`"${name}" is no metric name`);
    const made = make();
    this.#metrics.set(name, { ...made, help, type });
    return made.handle;
  }
}

function renderLabels(labels: Labels): string {
  const pairs = Object.entries(labels).map(
    ([name, value]) => `${name}="${value.replaceAll("\\", "\\\\").replaceAll('"', '\\"').replaceAll("\n", "\\n")}"`,
  );
  return pairs.length === 0 ? "" : `{${pairs.join(",")}}`;
}
